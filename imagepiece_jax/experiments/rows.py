"""Methods side by side: found or trained, measured, and set beside the published.

table1, table2, combos, ablation and evit-table are lists of `Row`s; this is what they
have in common.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.experiments import published, render
from imagepiece_jax.models import pretrained
from imagepiece_jax.models.registry import MODELS
from imagepiece_jax.reduction import settings


@dataclasses.dataclass(frozen=True)
class Row:
    """A model of a table: how it is called, its reduction and its stem."""

    name: str
    reduction: Mapping[str, Any] = dataclasses.field(hash=False)
    stem: str = "patch"


DENSE = Row("DeiT", settings.DENSE)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured for a Row: an Answers a seed, and the dense model's beside."""

    row: Row
    subject: pretrained.Pretrained
    reduction: Mapping[str, Any]
    answers: tuple
    bases: tuple = ()
    speed: dict | None = None

    @property
    def accuracy(self):
        return statistics.accuracy([each.right for each in self.answers])

    @property
    def difference(self):
        """To the dense model of the same seed, None where there is none."""
        if not self.bases:
            return None
        return statistics.paired_difference(
            [each.right for each in self.answers], [each.right for each in self.bases]
        )

    @property
    def facts(self):
        return self.answers[0].figures


def find(lab, row, matched=True, stems=("patch",)):
    """(subject, reduction) pairs of a Row, one a seed; [] where there is no model.

    matched, stems: where this trains, whether at equal GMACs, and with which stems.
    """
    if lab.small is not None:
        if row.stem not in stems:
            return []
        runs = lab.small.runs(row.reduction, row.stem, matched)
        return [(run, run.reduction) for run in runs]
    if lab.trained:
        wanted = settings.completed(row.reduction)
        return [
            (run, run.reduction)
            for run in lab.trained
            if run.stem == row.stem and run.reduction == wanted
        ]
    one = lab.one()
    return [(one, row.reduction)] if one.stem == row.stem else []


def measure(lab, rows, matched=True, stems=("patch",)):
    """{row name: Measured, or None where there is no model}, the dense model too.

    matched, stems: as `find` takes them. InputError where there is not one model.
    """
    models = {
        row: find(lab, row, matched, stems) for row in dict.fromkeys((DENSE, *rows))
    }
    for subject, reduction in itertools.chain(*models.values()):
        subject.model(reduction)  # those that cannot be made are told now
    bases = {
        subject.seed: lab.answers(subject, kept) for subject, kept in models[DENSE]
    }
    found = {row.name: _measured(lab, row, models[row], bases) for row in models}
    if not any(found.values()):
        there = [
            f"{r.path.name} ({r.reduction['name']}, {r.stem})" for r in lab.trained
        ]
        there = f" (--runs has {', '.join(there)})" if there else ""
        raise InputError(
            f"none of the models of this table is there{there}; allowed are --weights "
            "of one of them, --runs with trained ones, and --small, which trains them"
        )
    return found


def _measured(lab, row, models, bases):
    """The Measured of a row's models; of a seed without a dense model the first is."""
    if not models:
        return None
    seeds = [subject.seed for subject, _ in models]
    first = next(iter(bases.values()), None)
    subject, reduction = models[0]
    return Measured(
        row=row,
        subject=subject,
        reduction=reduction,
        answers=tuple(lab.answers(*model) for model in models),
        bases=tuple(bases.get(seed, first) for seed in seeds) if bases else (),
        speed=lab.speed(subject, reduction),
    )


def table(rows, found, printed, whose):
    """The Markdown table of `rows`; `printed` maps a row's name to (acc1, img/s).

    `whose` figures those are, as the heading says; they may have no speeds. Rows
    without a model and a printed figure are left out (see `notes`).
    """
    dense = found[DENSE.name]
    label = f"{whose}, {published.LABEL}"
    timed = any(speed for _, speed in printed.values())
    several = any(m is not None and len(m.answers) > 1 for m in found.values())
    head = [
        "model",
        f"acc1, % ({label})",
        *([f"img/s, RTX 3090 ({label})"] if timed else []),
        "weights",
        "acc1, % (measured)",
        "to dense, points (paired)",
        *(["acc1 by seed"] if several else []),
        render.TOKENS_LEFT,
        "GMACs",
        "x dense by MACs",
        "x dense, measured",
    ]
    lines = []
    for row in rows:
        if found[row.name] is None and row.name not in printed:
            continue
        acc1, speed = printed.get(row.name, (None, None))
        name = row.name + _fitted(row, found[row.name])
        line = [name, render.number(acc1)]
        line += [render.number(speed, 1)] if timed else []
        if found[row.name] is None:
            line += ["none", *[render.BLANK] * (len(head) - len(line) - 1)]
        else:
            line += _cells(found[row.name], dense, several)
        lines.append(line)
    return render.table(head, lines)


def _fitted(row, measured):
    """Fields in which the reduction is not the row's, but was matched: " (r=9)"."""
    if measured is None:
        return ""
    differs = settings.changed(measured.reduction, row.reduction)
    fields = [f"{k}={v}" for k, v in differs.items() if k != "name"]
    return f" ({', '.join(fields)})" if fields else ""


def _cells(measured, dense, several):
    """The measured cells of a line; `dense` is None where there is no dense model."""
    gmacs = measured.facts["gmacs"]
    use = measured.subject.use(measured.reduction)
    if measured.facts["untrained_selectors"]:
        use += ", untrained selectors"
    cells = [use, statistics.format_estimate(measured.accuracy)]
    itself = measured.row == DENSE
    cells.append("" if itself else statistics.format_difference(measured.difference))
    if several:
        cells.append(" ".join(f"{each['acc1']:.1f}" for each in measured.answers))
    ratio = f"{dense.facts['gmacs'] / gmacs:.2f}" if dense else ""
    speed = render.speed_cell(measured.speed)
    return [*cells, measured.facts["tokens"], f"{gmacs:.3f}", ratio, speed]


def form(lab):
    """How the models came to be, and what their figures may be compared with."""
    told = _form(lab)
    if lab.images.name != "imagenet2012":
        told += (
            " Other images than ImageNet's validation set: published figures are there "
            "to be read, not to be compared with."
        )
    return told


def _form(lab):
    if lab.small is not None:
        seeds = ", ".join(map(str, lab.small.seeds))
        return (
            f"Fine-tuned here: {lab.small.config.epochs} epochs dense, then as many "
            f"with each reduction, seeds {seeds}."
        )
    if lab.trained:
        return "Trained models, each with the reduction it was trained with."
    return (
        "One checkpoint for all rows, off the shelf: but for the reduction that it was "
        "trained with, no row is a measure of a method as published."
    )


def notes(lab, found):
    """What the figures of a table are, and are not: a paragraph."""
    parts = [render.images_note(lab), form(lab)]
    lacking = [name for name, measured in found.items() if measured is None]
    if lacking:
        parts.append(f"There is no model here of: {'; '.join(lacking)}.")
    if any(m is not None and m.facts["untrained_selectors"] for m in found.values()):
        parts.append(
            "Untrained selectors keep tokens by fresh weights: their rows say what "
            "the counts cost, nothing of the method."
        )
    return " ".join(filter(None, [*parts, render.speed_note(lab)]))


def present(
    lab,
    name,
    title,
    rows,
    *,
    matched=True,
    stems=("patch",),
    more=(),
    sizes=("deit_s",),
):
    """Measure `rows`, and write the page of a table.

    more: functions of what `measure` gives, for further parts of the page; sizes: see
    `printed_for`.
    """
    found = measure(lab, rows, matched, stems)
    parts = [part(found) for part in more]
    text = table(rows, found, *printed_for(found, sizes))
    render.page(lab, name, title, text, notes(lab, found), *parts)


def printed_for(found, sizes):
    """({row name: (acc1, img/s)}, whose these are) of the models' own size.

    sizes: those that the paper prints a table of; the first stands in for any other.
    """
    size = _size(found) if _size(found) in sizes else sizes[0]
    return published.ACCURACY_SPEED[size], published.SIZES[size]


def _size(found):
    """Name of the models' size, such as "deit_s"; None for one that has no name."""
    fields = next(m.subject.fields for m in found.values() if m is not None)
    named = MODELS.get(fields["name"], {})
    same = all(fields.get(k) in (None, v) for k, v in named.items())
    return fields["name"] if same else None
