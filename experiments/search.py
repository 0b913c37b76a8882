"""Search for the best reduction of a checkpoint under a budget.

`--budget 0.5 --metric gmacs`: half of what the dense model costs. Half of the images
choose, the other half report. Every candidate has the highest rate that the budget
leaves. They begin with an eighth of the choosing half; the better third proceeds to
half of it, the better third of those to all of it (successive halving, Jamieson and
Talwalkar 2016). On few images the mean probability of the right class ranks them, which
separates them better than accuracy; on the whole half accuracy does, probability where
it ties. With `--metric ms` finalists are timed, and take the next lower rate until they
fit. No figure shown is of images that chose.
"""

import dataclasses
import itertools
import math
import pathlib
import pprint
import random
from typing import Any

import numpy as np

from experiments import match_cost, render
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.reduction import settings
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece

SHARES = (1 / 8, 1 / 2, 1)  # of the choosing half, from round to round
KEEP_ONE_OF = 3  # candidates stay for the next round
MAX_TRIALS = 4  # rates that are timed before a finalist is given up
UNITS = {"gmacs": "GMACs", "ms": "time"}
MIN_IMAGES = 16
# Shapes, each all of a reduction but its rate, which the budget sets: the papers' own.
PUBLISHED = (
    {"name": "tome"},
    {"name": "evit"},
    {"name": "evit", "fuse_token": True},
    {"name": "imagepiece"},
    {"name": "imagepiece", "prune_blocks": ()},
    {"name": "imagepiece_tome"},
    {"name": "random"},
)
CANDIDATE_RATIOS = (0.3, 0.5, 0.7, 1.0)
MERGE_RATIOS = (0.02, 0.04, 0.06, 0.08)


def search(context):
    """Search at every budget; writes search_METRIC.md and a config for each winner."""
    metric = context.options.metric
    parts = [_search_at(context, share) for share in context.options.budget]
    note = (
        "Figures are of the half of the images that chose nothing, but for the column "
        f"that says so: {len(halves(len(context.images))[1])} of "
        f"{render.images_note(context)} "
        "Published form: a paper's blocks and switches, at the highest rate that fits "
        "the budget. On the frontier: no other finalist is as cheap and as accurate, "
        "by the choosing half; among equals the right class's probability decides."
    )
    speeds = render.speed_note(context) if metric == "ms" else ""
    title = "best under a budget"
    render.page(context, f"search_{metric}", title, *parts, note, speeds)


def halves(images: int) -> tuple[np.ndarray, np.ndarray]:
    """(places that choose, places that report): all of 0 .. images - 1, shuffled.

    In random order: of a set sorted by class, the first few are of all classes.
    """
    if images < MIN_IMAGES:
        raise InputError(f"a search needs {MIN_IMAGES} images or more; found {images}")
    order = np.random.default_rng(0).permutation(images)
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


def _search_at(context, share):
    """The part of the page for one budget."""
    pretrained, metric = context.pretrained, context.options.metric
    choosing, reporting = halves(len(context.images))
    limit = share * pretrained.gmacs(settings.DENSE)
    candidates = fitted(pretrained, limit, context.options.candidates)
    if not any(candidate.known for candidate in candidates):
        raise InputError(f"--budget {share:g}: no published reduction fits it here")

    def evaluate(candidate, places):
        images = context.images.subset(np.sort(places))
        return context.evaluate(pretrained, candidate.reduction, images)

    def probability(candidate, places):
        return evaluate(candidate, places)["probability"]

    def accuracy(candidate):
        result = evaluate(candidate, choosing)
        return result["acc1"], result["probability"]

    # The published forms stay to the end: they are what the winner is compared with.
    finalists = halving(candidates, choosing, probability)
    finalists += [c for c in candidates if c.known and c not in finalists]
    if metric == "ms":
        finalists = _within_time(context, finalists, share)
    ranked = sorted(finalists, key=accuracy, reverse=True)
    best = next((c for c in ranked if c.known), None)
    file = context.out / f"search_{metric}_{share:g}.py"
    budget = f"{share:g} of the dense model's {UNITS[metric]}"
    write_config(file, context, ranked[0].reduction, budget)
    parts = [
        f"### {budget}",
        f"{len(candidates)} settings were tried, {len(finalists)} of them on the whole "
        f"choosing half. Winner: {ranked[0]}; its config is `{file.name}`.",
    ]
    if best is ranked[0]:
        parts.append("The winner is a published form.")
    elif best is not None:
        rights = [evaluate(c, reporting).right for c in (ranked[0], best)]
        gain = statistics.format_difference(statistics.paired_difference(*rights))
        parts.append(
            f"Points above the published form that the choosing half prefers, {best}: "
            f"{gain} (McNemar's exact p = {statistics.mcnemar(*rights):.2g})."
        )
    parts.append(_table(context, ranked, choosing, reporting))
    return "\n\n".join(parts)


def fitted(pretrained, limit: float, count: int | None = None) -> list[Candidate]:
    """Candidates at their most expensive rates of at most `limit` GMACs.

    Published forms, and `count` others (None: all). Shapes that come to the same
    reduction count once; those that leave a tenth of the budget unused are left out.
    """
    depth = len(pretrained.model(settings.DENSE).plan)
    found, known = {}, len(PUBLISHED)
    shapes = [*PUBLISHED, *other_shapes(depth)]
    for place, shape in enumerate(shapes):
        rates = at_all_rates(shape, depth)
        best = match_cost.most_expensive(pretrained.gmacs, rates, limit)
        if best is not None and best[0] >= 0.9 * limit:
            reduction = best[1]
            key = str(settings.completed(reduction))
            found.setdefault(key, Candidate(shape, reduction, place < known))
        others = sum(not candidate.known for candidate in found.values())
        if count is not None and others >= count:
            break
    return list(found.values())


def halving(candidates: list, choosing, score) -> list:
    """The candidates that are left for the last round, on all of `choosing`.

    score(candidate, places): higher is better, of a part of the places.
    """
    for share in SHARES[:-1]:
        places = choosing[: max(8, round(share * len(choosing)))]
        ranked = sorted(candidates, key=lambda c: score(c, places), reverse=True)
        candidates = ranked[: max(2, math.ceil(len(ranked) / KEEP_ONE_OF))]
    return candidates


def _within_time(context, finalists, share):
    """Finalists at rates that measure at most `share` of the dense model's time."""
    pretrained, found = context.pretrained, []
    depth = len(pretrained.model(settings.DENSE).plan)
    for candidate in finalists:
        rates = at_all_rates(candidate.shape, depth)
        for _ in range(MAX_TRIALS):
            ratio = context.speed(pretrained, candidate.reduction)["ratio"]
            if ratio * share >= 1:
                found.append(candidate)
                break
            # As if time fell as MACs do, and by a step at least.
            limit = pretrained.gmacs(candidate.reduction) * min(0.98, ratio * share)
            lower = match_cost.most_expensive(pretrained.gmacs, rates, limit)
            if lower is None:
                break
            candidate = dataclasses.replace(candidate, reduction=lower[1])
    if not found:
        raise InputError(
            f"--budget {share:g}: no finalist is that fast here; allowed are larger "
            "ones"
        )
    return found


def frontier(points: list[tuple[float, float]]) -> list[bool]:
    """Which of [(cost, accuracy)] no other beats in both."""
    return [
        not any(
            (c <= cost and a >= accuracy) and (c < cost or a > accuracy)
            for c, a in points
        )
        for cost, accuracy in points
    ]


def at_all_rates(shape: dict, depth: int) -> list[dict]:
    """All rates of a shape, as reductions. "blocks" of ToMe are where it merges."""
    if shape["name"] == "tome" and "blocks" in shape:
        first, end = shape["blocks"]
        own = {k: v for k, v in shape.items() if k != "blocks"}
        return [
            own | {"r_list": (0,) * first + (r,) * (end - first)} for r in range(1, 80)
        ]
    return match_cost.settings(shape, depth)


def other_shapes(depth: int, seed: int = 0) -> list[dict]:
    """Shapes beside the published ones, in random order.

    The families alternate, so that the first few shapes have them all.
    """
    families = [_tome(depth), _evit(depth), _imagepiece(depth), _combined(depth)]
    draw = random.Random(seed)
    for family in families:
        draw.shuffle(family)
    turns = itertools.zip_longest(*families)
    return [shape for turn in turns for shape in turn if shape is not None]


def _tome(depth):
    windows = [
        (first, end)
        for first in range(0, depth // 2, max(1, depth // 12))
        for end in range(depth // 2, depth + 1, max(1, depth // 6))
        if (first, end) != (0, depth) and end > first
    ]
    found = [{"name": "tome", "blocks": window} for window in windows]
    tilts = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)
    found += [{"name": "tome", "inflection": tilt} for tilt in tilts]
    return [
        shape | more
        for shape in found
        for more in ({}, {"metric": "token"}, {"prop_attn": False})
    ]


def _evit(depth):
    third = depth // 4
    cuts = [tuple(range(first, depth, third)) for first in range(1, third + 1)]
    cuts += [tuple(range(first, depth, 2)) for first in (1, 2, 3)]
    cuts += [tuple(range(first, depth)) for first in (0, 2, 4)]
    found = []
    for blocks in dict.fromkeys(cuts):
        found += [{"name": "evit", "blocks": blocks}]
        found += [{"name": "evit", "blocks": blocks, "fuse_token": True}]
    return found


def _places(depth):
    """Fields that say where ImagePiece merges and prunes: A, B, and B moved back."""
    found = [{"schedule": "B"}, {"schedule": "A"}]
    merges, prunes = ImagePiece().scheduled_blocks(depth)
    for later in (2, 3):
        if prunes[-1] + later < depth:
            found.append(
                {
                    "merge_blocks": tuple(block + later for block in merges),
                    "prune_blocks": tuple(block + later for block in prunes),
                }
            )
    return found


def _imagepiece(depth):
    mix = itertools.product(_places(depth), CANDIDATE_RATIOS, MERGE_RATIOS)
    found = []
    for place, candidates, merges in mix:
        shape = {"name": "imagepiece", **place}
        shape |= {"candidate_ratio": candidates, "merge_ratio": merges}
        found += [shape, shape | {"prop_attn": True}]
    merges = tuple(range(depth))
    return found + [
        {"name": "imagepiece", "merge_blocks": merges[first:], "prune_blocks": ()}
        | {"candidate_ratio": candidates, "prop_attn": True}
        for first in (0, 1, 2, 3)
        for candidates in CANDIDATE_RATIOS
    ]


def _combined(depth):
    """ImagePiece + ToMe: as ImagePiece with pruning, bipartite merges in its place."""
    found = [shape for shape in _imagepiece(depth) if shape.get("prune_blocks") != ()]
    return [shape | {"name": "imagepiece_tome"} for shape in found]


def _table(context, ranked, choosing, reporting):
    """Finalists, ranked by the choosing half; figures of the reporting half."""
    pretrained = context.pretrained
    reports = context.images.subset(np.sort(reporting))
    chooses = context.images.subset(np.sort(choosing))
    base = context.evaluate(pretrained, settings.DENSE, reports)
    points = [
        (
            pretrained.gmacs(c.reduction),
            context.evaluate(pretrained, c.reduction, chooses)["acc1"],
        )
        for c in ranked
    ]
    lines = []
    at_frontier = frontier(points)
    for candidate, (_, chose), best in zip(ranked, points, at_frontier, strict=True):
        result = context.evaluate(pretrained, candidate.reduction, reports)
        change = statistics.paired_difference(result.right, base.right)
        lines.append(
            [
                candidate,
                "published form" if candidate.known else "",
                f"{chose:.1f}",
                "yes" if best else "",
                f"{result['gmacs']:.3f}",
                result["tokens"],
                statistics.format_estimate(result.accuracy),
                statistics.format_difference(change),
            ]
        )
    head = ["setting", "", "acc1, %, choosing half", "on the frontier", "GMACs"]
    head += [render.TOKENS_LEFT, "acc1, %", "to dense, points"]
    return render.table(head, lines)


def write_config(path: pathlib.Path, context, reduction: dict, budget: str):
    """A config file of the checkpoint with `reduction`, for --config of any command."""
    pretrained, images = context.pretrained, context.images
    own = settings.completed(reduction)
    prop_attn = own.pop("prop_attn")
    fields = (context.config or context.load_config("base.py")).to_dict()
    given = {k: v for k, v in pretrained.fields.items() if k in fields["model"]}
    fields["model"] |= given | {"prop_attn": prop_attn, "drop_path_rate": 0.0}
    fields |= {k: pretrained.fields[k] for k in ("image_size", "num_classes")}
    fields["reduction"] = own
    fields["data"] |= {"name": images.name, "resize": images.resize}
    about = {
        "budget": budget,
        "gmacs": pretrained.gmacs(reduction),
        "weights": str(pretrained.path),
        "chosen_on": f"half of {len(images)} images of {images.name}",
    }
    # The file is run as Python and names come from outside: all of it is literals.
    about, fields = (pprint.pformat(part, sort_dicts=False) for part in (about, fields))
    replace_file(path, _CONFIG.format(about=about, fields=fields))


_CONFIG = '''"""The winner of a search, whose budget and weights ABOUT names."""

from ml_collections import config_dict

ABOUT = {about}

FIELDS = {fields}


def get_config():
    """All fields, as values."""
    return config_dict.ConfigDict(FIELDS).lock()
'''
