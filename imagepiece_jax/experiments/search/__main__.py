"""Which reduction is best for this checkpoint under this budget?

`--budget 0.5 --metric gmacs`: half of what the dense model costs. Half of the images
choose, the other half report. Every candidate has the highest rate that the budget
leaves. They begin with an eighth of the choosing half; the better third goes on to
half of it, the better third of those to all of it (successive halving, Jamieson and
Talwalkar 2016). First the right class's mean probability ranks them, which few images
tell better than accuracy; on the whole half accuracy does, probability where it ties.
With `--metric ms` finalists are timed, and take the next lower rate until they fit.
No figure shown is of images that chose.
"""

import dataclasses
import math
import pprint
from typing import Any

import numpy as np

from imagepiece_jax import config_files
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.experiments import match_cost, render
from imagepiece_jax.experiments.search import space
from imagepiece_jax.reduction import settings

SHARES = (1 / 8, 1 / 2, 1)  # of the choosing half, from round to round
STAYS = 3  # one of so many stays for the next round
TRIALS = 4  # rates that are timed before a finalist is given up
UNITS = {"gmacs": "GMACs", "ms": "time"}


def run(lab):
    """Search at every budget; writes search_METRIC.md and a config for each winner."""
    metric, count = lab.options["metric"], lab.options["candidates"]
    parts = [_at(lab, share, metric, count) for share in lab.options["budgets"]]
    note = (
        "Figures are of the half of the images that chose nothing, but for the column "
        f"that says so: {len(halves(len(lab.images))[1])} of {render.images_note(lab)} "
        "Published form: a paper's blocks and switches, at the highest rate that fits "
        "the budget. On the frontier: no other finalist is as cheap and as accurate, "
        "by the choosing half; among equals the right class's probability decides."
    )
    told = render.speed_note(lab) if metric == "ms" else ""
    render.page(lab, f"search_{metric}", "best under a budget", *parts, note, told)


def halves(images, seed=0):
    """(places that choose, places that report): all of 0 .. images - 1, drawn.

    In the order drawn: of a set sorted by class, the first few are of all classes.
    """
    if images < 16:
        raise InputError(f"a search needs 16 images or more; found {images}")
    order = np.random.default_rng(seed).permutation(images)
    return order[: images // 2], order[images // 2 :]


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A shape of the search space at one rate; `known`: a published form."""

    shape: dict[str, Any]
    reduction: dict[str, Any]
    known: bool

    def __str__(self):
        """ "evit keep_rate=0.5 blocks=(3, 6, 9)"."""
        return settings.label(self.reduction)


def _at(lab, share, metric, count):
    """The part of the page for one budget."""
    subject = lab.one()
    choosing, reporting = halves(len(lab.images))
    candidates = fitted(subject, share * subject.gmacs(settings.DENSE), count)
    if not any(candidate.known for candidate in candidates):
        raise InputError(f"--budget {share:g}: no published reduction fits it here")

    def told(candidate, places):
        part = lab.images.part(np.sort(places))
        return lab.answers(subject, candidate.reduction, part)

    def probability(candidate, places):
        return told(candidate, places)["probability"]

    def accuracy(candidate):
        answers = told(candidate, choosing)
        return answers["acc1"], answers["probability"]

    # The published forms stay to the end: they are what the winner is compared with.
    finalists = halving(candidates, choosing, probability)
    finalists += [c for c in candidates if c.known and c not in finalists]
    if metric == "ms":
        finalists = _within_time(lab, subject, finalists, share)
    ranked = sorted(finalists, key=accuracy, reverse=True)
    best = next((c for c in ranked if c.known), None)
    file = lab.out / f"search_{metric}_{share:g}.py"
    budget = f"{share:g} of the dense model's {UNITS[metric]}"
    write_config(file, lab, subject, ranked[0].reduction, budget)
    parts = [
        f"### {budget}",
        f"{len(candidates)} settings were tried, {len(finalists)} of them on the whole "
        f"choosing half. Winner: {ranked[0]}; its config is `{file.name}`.",
    ]
    if best is ranked[0]:
        parts.append("The winner is a published form.")
    elif best is not None:
        rights = [told(c, reporting).right for c in (ranked[0], best)]
        gain = statistics.format_difference(statistics.paired_difference(*rights))
        parts.append(
            f"Points above the published form that the choosing half prefers, {best}: "
            f"{gain} (McNemar's exact p = {statistics.mcnemar(*rights):.2g})."
        )
    parts.append(_table(lab, subject, ranked, choosing, reporting))
    return "\n\n".join(parts)


def fitted(subject, limit, count=None):
    """Candidates at their dearest rates of at most `limit` GMACs.

    Published forms, and `count` others (None: all). Shapes that come to the same
    reduction count once; those that leave a tenth of the budget unused are left out.
    """
    depth = len(subject.model(settings.DENSE).plan)
    found, known = {}, len(space.PUBLISHED)
    shapes = [*space.PUBLISHED, *space.shapes(depth)]
    for place, shape in enumerate(shapes):
        rates = space.rates(shape, depth)
        best = match_cost.dearest(subject.gmacs, rates, limit)
        if best is not None and best[0] >= 0.9 * limit:
            reduction = best[1]
            key = str(settings.completed(reduction))
            found.setdefault(key, Candidate(shape, reduction, place < known))
        others = sum(not candidate.known for candidate in found.values())
        if count is not None and others >= count:
            break
    return list(found.values())


def halving(candidates, choosing, score, shares=SHARES):
    """The candidates that are left for the last round, on all of `choosing`.

    score(candidate, places): higher is better, of a part of the places.
    """
    for share in shares[:-1]:
        places = choosing[: max(8, round(share * len(choosing)))]
        ranked = sorted(candidates, key=lambda c: score(c, places), reverse=True)
        candidates = ranked[: max(2, math.ceil(len(ranked) / STAYS))]
    return candidates


def _within_time(lab, subject, finalists, share):
    """Finalists at rates that measure at most `share` of the dense model's time."""
    depth, found = len(subject.model(settings.DENSE).plan), []
    for candidate in finalists:
        rates = space.rates(candidate.shape, depth)
        for _ in range(TRIALS):
            ratio = lab.speed(subject, candidate.reduction)["ratio"]
            if ratio * share >= 1:
                found.append(candidate)
                break
            # As if time fell as MACs do, and by a step at least.
            limit = subject.gmacs(candidate.reduction) * min(0.98, ratio * share)
            lower = match_cost.dearest(subject.gmacs, rates, limit)
            if lower is None:
                break
            candidate = dataclasses.replace(candidate, reduction=lower[1])
    if not found:
        raise InputError(
            f"--budget {share:g}: no finalist is that fast here; allowed are larger "
            "ones"
        )
    return found


def frontier(points):
    """Which of [(cost, accuracy)] no other beats in both: a list of bool."""
    return [
        not any(
            (c <= cost and a >= accuracy) and (c < cost or a > accuracy)
            for c, a in points
        )
        for cost, accuracy in points
    ]


def _table(lab, subject, ranked, choosing, reporting):
    """Finalists, by what the choosing half says; figures of the reporting half."""
    part = lab.images.part(np.sort(reporting))
    chosen = lab.images.part(np.sort(choosing))
    base = lab.answers(subject, settings.DENSE, part)
    points = [
        (subject.gmacs(c.reduction), lab.answers(subject, c.reduction, chosen)["acc1"])
        for c in ranked
    ]
    lines = []
    at_frontier = frontier(points)
    for candidate, (_, chose), best in zip(ranked, points, at_frontier, strict=True):
        answers = lab.answers(subject, candidate.reduction, part)
        change = statistics.paired_difference(answers.right, base.right)
        lines.append(
            [
                candidate,
                "published form" if candidate.known else "",
                f"{chose:.1f}",
                "yes" if best else "",
                f"{answers['gmacs']:.3f}",
                answers["tokens"],
                statistics.format_estimate(answers.accuracy),
                statistics.format_difference(change),
            ]
        )
    head = ["setting", "", "acc1, %, choosing half", "on the frontier", "GMACs"]
    head += [render.TOKENS_LEFT, "acc1, %", "to dense, points"]
    return render.table(head, lines)


def write_config(path, lab, subject, reduction, budget):
    """A config file of the subject with `reduction`, for --config of any command."""
    own = settings.completed(reduction)
    prop_attn = own.pop("prop_attn")
    fields = lab.options["base_config"].to_dict()
    told = {k: v for k, v in subject.fields.items() if k in fields["model"]}
    fields["model"] |= told | {"prop_attn": prop_attn, "drop_path_rate": 0.0}
    fields |= {k: subject.fields[k] for k in ("image_size", "num_classes")}
    fields["reduction"] = own
    fields["data"] |= {"name": lab.images.name, "resize": lab.images.resize}
    about = {
        "budget": budget,
        "gmacs": subject.gmacs(reduction),
        "weights": str(subject.path),
        "chosen_on": f"half of {len(lab.images)} images of {lab.images.name}",
    }
    # The file is run as Python and names come from outside: all of it is literals.
    about, fields = (pprint.pformat(part, sort_dicts=False) for part in (about, fields))
    replace_file(path, _CONFIG.format(about=about, fields=fields))
    config_files.load(path)  # it must be one


_CONFIG = '''"""The winner of a search, whose budget and weights ABOUT names."""

from ml_collections import config_dict

ABOUT = {about}

FIELDS = {fields}


def get_config():
    """All fields, as values."""
    return config_dict.ConfigDict(FIELDS).lock()
'''
