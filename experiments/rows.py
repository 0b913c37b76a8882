"""Rows of a table: their models, measured, beside published figures."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments import intervals, published, render
from experiments.context import Answers, Context
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.registry import MODELS
from imagepiece_jax.reduction import settings


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A model of a table."""

    name: str
    reduction: Mapping[str, Any] = dataclasses.field(hash=False)
    stem: str = "patch"
    # The reduction that it is trained with, where the row's is put on afterwards.
    trained: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)


DENSE = TableRow("DeiT", settings.DENSE)
UNTRAINED = "keep tokens by fresh weights: their rows say what the counts cost"


@dataclasses.dataclass(frozen=True)
class Measured:
    """Results of a row, one a seed, and those of the dense model."""

    row: TableRow
    pretrained: Pretrained
    reduction: Mapping[str, Any]
    results: tuple[Answers, ...]
    bases: tuple[Answers, ...] = ()
    speed: dict | None = None

    @property
    def rights(self) -> np.ndarray:
        """The images that were right. bool [seeds, images]."""
        return np.stack([each.right for each in self.results])

    @property
    def accuracy(self) -> statistics.Estimate:
        return intervals.accuracy(self.rights)

    @property
    def difference(self) -> statistics.Estimate | None:
        """To the dense model of the same seed, None where there is none."""
        if not self.bases:
            return None
        bases = [each.right for each in self.bases]
        return intervals.difference(self.rights, bases)

    @property
    def facts(self) -> dict:
        return self.results[0].figures


def find(context: Context, row: TableRow, by_stem: bool = False) -> list:
    """(weights, reduction) pairs of a TableRow, as `Models.find` has them."""
    trained = row.reduction if row.trained is None else row.trained
    models = context.models.find(trained, row.stem, by_stem)
    if row.trained is None:
        return models
    return [(pretrained, row.reduction) for pretrained, _ in models]


def measure(
    context: Context, rows: tuple[TableRow, ...], by_stem: bool = False
) -> dict[str, Measured | None]:
    """Measured of each row by its name, the dense model too; None without a model.

    InputError where there is not one model.
    """
    every = dict.fromkeys((DENSE, *rows))
    models = {row: find(context, row, by_stem) for row in every}
    for pretrained, reduction in itertools.chain(*models.values()):
        pretrained.model_with(reduction)  # fail before anything is measured
    results = {
        row.name: measure_row(context, row, found, models[DENSE]) if found else None
        for row, found in models.items()
    }
    if not any(results.values()):
        names = ", ".join(
            str(weights.source.path) for weights in context.models.weights
        )
        problem = f"has no model but {names or 'none'}"
        allowed = "--weights of a row, --runs with trained ones, or --small"
        raise InputError(problem, field="this table", value=names, allowed=allowed)
    return results


def measure_row(context: Context, row: TableRow, models: list, dense: list) -> Measured:
    """A row's models and the `dense` ones measured, both as `find` gives them.

    The first dense model stands in for those of other seeds.
    """
    bases = {
        each.source.seed: context.evaluate(each, reduction) for each, reduction in dense
    }
    seeds = [pretrained.source.seed for pretrained, _ in models]
    first = next(iter(bases.values()), None)
    pretrained, reduction = models[0]
    return Measured(
        row=row,
        pretrained=pretrained,
        reduction=reduction,
        results=tuple(context.evaluate(*model) for model in models),
        bases=tuple(bases.get(seed, first) for seed in seeds) if bases else (),
        speed=context.speed(pretrained, reduction),
    )


def table(rows, results, printed, whose) -> str:
    """The Markdown table of `rows`; `printed` maps a row's name to (acc1, img/s).

    `whose` figures those are, as the heading says; they may have no speeds. Rows
    without a model and a printed figure are left out (see `facts`).
    """
    dense = results[DENSE.name]
    label = f"{whose}, {published.LABEL}"
    timed = any(speed for _, speed in printed.values())
    several = any(m is not None and len(m.results) > 1 for m in results.values())
    head = ["model", f"acc1, % ({label})", *[f"img/s, RTX 3090 ({label})"] * timed]
    head += ["weights", "acc1, % (measured)", "to dense, points (paired)"]
    head += [*["acc1 by seed"] * several, render.TOKENS_LEFT, "GMACs"]
    head += ["x dense by MACs", "x dense, measured"]
    lines = []
    for row in rows:
        if results[row.name] is None and row.name not in printed:
            continue
        acc1, speed = printed.get(row.name, (None, None))
        name = row.name + _fitted(row, results[row.name])
        line = [name, render.number(acc1)]
        line += [render.number(speed, 1)] if timed else []
        if results[row.name] is None:
            line += ["none", *[render.BLANK] * (len(head) - len(line) - 1)]
        else:
            line += _cells(results[row.name], dense, several)
        lines.append(line)
    return render.table(head, lines)


def _fitted(row, measured):
    """Fields in which the reduction is not the row's, but was matched: " (r=9)"."""
    if measured is None:
        return ""
    differs = settings.differences(measured.reduction, row.reduction)
    fields = [f"{k}={v}" for k, v in differs.items() if k != "name"]
    return f" ({', '.join(fields)})" if fields else ""


def _cells(measured, dense, several):
    """The measured cells of a line; `dense` is None where there is no dense model."""
    gmacs = measured.facts["gmacs"]
    use = measured.pretrained.use(measured.reduction)
    if measured.facts["untrained_selectors"]:
        use += ", untrained selectors"
    cells = [use, statistics.format_estimate(measured.accuracy)]
    itself = measured.row == DENSE
    cells.append("" if itself else statistics.format_difference(measured.difference))
    if several:
        cells.append(" ".join(f"{each['acc1']:.1f}" for each in measured.results))
    ratio = f"{dense.facts['gmacs'] / gmacs:.2f}" if dense else ""
    speed = render.speed_cell(measured.speed)
    return [*cells, measured.facts["tokens"], f"{gmacs:.3f}", ratio, speed]


def facts(context: Context, results: dict[str, Measured | None]) -> str:
    """Images and models of a table, and the rows that it lacks."""
    lacking = [name for name, measured in results.items() if measured is None]
    untrained = any(
        m is not None and m.facts["untrained_selectors"] for m in results.values()
    )
    more = {"no model of": "; ".join(lacking)}
    more["untrained selectors"] = UNTRAINED * untrained
    return render.facts(context, {k: v for k, v in more.items() if v})


def present(
    context: Context,
    name: str,
    title: str,
    rows: tuple[TableRow, ...],
    *,
    by_stem: bool = False,
    more: tuple[Callable[[dict], str], ...] = (),
    sizes: tuple[str, ...] = ("deit_s",),
):
    """Measure `rows`, and write the page of a table.

    more: further parts of the page, functions of the results of `measure`
    sizes: see `printed_for`
    """
    results = measure(context, rows, by_stem)
    parts = [part(results) for part in more]
    text = table(rows, results, *printed_for(results, sizes))
    render.page(context, name, title, text, facts(context, results), *parts)


def printed_for(results, sizes):
    """({row name: (acc1, img/s)}, whose these are) of the models' own size.

    sizes: those that the paper prints a table of; the first stands in for any other.
    """
    size = _size(results) if _size(results) in sizes else sizes[0]
    return published.ACCURACY_SPEED[size], published.SIZES[size]


def _size(results):
    """Name of the models' size, such as "deit_s"; None for one that has no name."""
    found = (m for m in results.values() if m is not None)
    fields = next(found).pretrained.source.config.as_dict
    named = MODELS.get(fields["name"], {})
    same = all(fields.get(k) in (None, v) for k, v in named.items())
    return fields["name"] if same else None
