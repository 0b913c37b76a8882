"""Which reduction keeps a map? A dense head on the features of reduced models.

The head reads a feature of every patch, as segmentation and depth heads do. Its maps of
each method, at shares of the dense model's MACs, are compared with those of the dense
model. Beside them stand ImagePiece's controls and two baselines: random tokens, and the
mean map of all other photographs, which needs no model. The head is not among the MACs.
"""

import functools
import math

import numpy as np

from experiments import render
from experiments.dense_maps.maps import (
    FILLED,
    FLOOR,
    HEAD,
    THRESHOLD,
    HeadMaps,
    cells,
    estimate,
    overlap,
)
from imagepiece_jax.common import plotting, token_pictures
from imagepiece_jax.evaluate import compare, compare_tables, statistics
from imagepiece_jax.inference.features import FILLS
from imagepiece_jax.reduction import settings
from imagepiece_jax.visualize import trace as tracing

CAPTION = (
    f"{token_pictures.CAPTION} Maps are the saliency of every pixel, brightest at 1, "
    "on the gray photograph; IoU is of the pixels above one half, with those of the "
    "dense map."
)
BASES = (*compare.REFERENCES, "imagepiece")  # that IoU is compared with
# The picture: methods beside the dense model, their share, and blocks from 0.
PICTURED, SHARE, AFTER = ("tome", "evit"), 0.6, (3, 6, 9)


def saliency(context):
    """Every method without learned parts at shares of the dense MACs; saliency.md."""
    given = context.settings
    maps, shares = HeadMaps(context, len(FILLS)), sorted(given.shares, reverse=True)
    checkpoint = context.checkpoint(context.pretrained)
    entries, left_out = compare.match(checkpoint, shares, given.methods)
    floor, dense = maps.floor(), context.pretrained.gmacs_with(settings.DENSE)
    without = floor["iou"].count(None)
    rows = _measured(maps, entries, given.fills)
    plot, curves = context.out / "saliency.png", _curves(rows)
    if curves:
        plotting.draw_curves(
            plot, "share of the dense MACs", "IoU to dense maps", curves
        )
    render.page(
        context,
        "saliency",
        "which reduction keeps a map",
        f"{render.note(context)} The dense model has {dense:.3f} GMACs, without the "
        f"head, and {without} of its maps no pixel above {THRESHOLD:g}. The table has "
        "correlation / IoU with the dense maps.",
        _by_share(rows, shares),
        f"![IoU by share of the dense MACs]({plot.name})" * bool(curves),
        _settings(rows, floor),
        compare_tables.absent_table({"left_out": left_out}),
    )


def _measured(maps, near, fills):
    """(MatchedMethod, fill, figures) of each; one fill where nothing is dropped."""
    rows, waiting = [], near
    for fill in fills:
        results = compare.measure_all(
            [entry.reduction for entry in waiting],
            key=lambda reduction: str(settings.with_defaults(reduction)),
            is_measured=functools.partial(maps.is_measured, fill=fill),
            measure=functools.partial(maps.compare, fill=fill),
        )
        pairs = [*zip(waiting, results, strict=True)]
        rows += [(e, fill if r["dropped"] else None, r) for e, r in pairs]
        waiting = [entry for entry, result in pairs if result["dropped"]]
    return sorted(rows, key=lambda row: near.index(row[0]))


def _mean(result, name):
    """Mean over images; 0 for an IoU that no image has."""
    values = [value for value in result[name] if value is not None]
    return float(np.mean(values or 0))


def _label(entry, fill):
    return entry.method if fill is None else f"{entry.method}, {fill}"


def _curves(rows):
    """{method: [(share, Estimate)]}, the best first; methods that have an IoU."""
    curves = {}
    for entry, fill, result in rows:
        if found := estimate(result, "iou"):
            curves.setdefault(_label(entry, fill), []).append((entry.share, found))
    return {label: curves[label] for label in _order(rows) if label in curves}


def _order(rows):
    """Labels by how far they are behind the highest IoU, on average over the shares."""
    best, behind = {}, {}
    for entry, _, result in rows:
        best[entry.share] = max(best.get(entry.share, 0), _mean(result, "iou"))
    for entry, fill, result in rows:
        lost = best[entry.share] - _mean(result, "iou")
        behind.setdefault(_label(entry, fill), []).append(lost)
    return sorted(behind, key=lambda label: np.mean(behind[label]))


def _by_share(rows, shares):
    """Table of methods by shares."""
    texts = {
        (_label(entry, fill), entry.share): (
            f"{_mean(result, 'correlation'):.3f} / {_mean(result, 'iou'):.3f}"
        )
        for entry, fill, result in rows
    }
    lines = [
        [f"`{label}`", *(texts.get((label, share)) for share in shares)]
        for label in _order(rows)
    ]
    head = ["share of the dense MACs", *(f"{share:g}" for share in shares)]
    return render.table(head, lines)


def _settings(rows, floor):
    """Table of every setting, by share and IoU, the floor last."""
    references = {
        (entry.method, entry.share): result
        for entry, _, result in reversed(rows)  # the first fill
        if entry.method in BASES
    }
    lines = []
    for entry, fill, result in sorted(
        rows, key=lambda row: (-row[0].share, -_mean(row[2], "iou"))
    ):
        line = [f"{entry.share:g}", f"`{entry.method}`"]
        line += [compare_tables.fields(entry.setting), FILLED.get(fill, fill)]
        line += [f"{result['gmacs']:.3f}", result["tokens"]]
        line += cells(result)
        for name in BASES:
            base = references.get((name, entry.share))
            change = base and entry.method != name and estimate(result, "iou", base)
            line.append(statistics.format_difference(change or None, 3))
        lines.append(line)
    blank = [None] * len(BASES)
    lines.append([None, FLOOR, *[None] * 4, *cells(floor), *blank])
    head = ["share", "method", "setting", "dropped patches get", "GMACs"]
    head += [render.TOKENS_LEFT, *HEAD]
    head += [f"IoU, to {compare_tables.NAMES[name]}" for name in BASES]
    return render.table(head, lines)


def picture(context):
    """Tokens and maps of photographs, dense and with two methods; saliency-picture.png.

    It draws every image of --data: take few (--limit).
    """
    maps, weights = HeadMaps(context), context.pretrained
    entries, _ = compare.match(context.checkpoint(weights), [SHARE], PICTURED)
    near = {entry.method: entry.reduction for entry in entries}
    reductions = [settings.DENSE, *(near[name] for name in PICTURED if name in near)]
    batches, fill = context.images.batches(), context.settings.fills[0]
    images = np.concatenate([batch["image"][batch["mask"] > 0] for batch in batches])
    drawn = []
    for reduction in reductions:
        vit = weights.with_reduction(reduction, weights.source.seed)
        drawn.append((vit, maps.draw(reduction, fill)[1]))
    dense, rows = drawn[0][1], []
    traces = [tracing.trace(vit.model, vit.variables, images) for vit, _ in drawn]
    for index, image in enumerate(images):
        for (vit, own), trace in zip(drawn, traces, strict=True):
            rows.append(_row(vit, image, trace, own, dense, index))
    path = context.out / "saliency-picture.png"
    token_pictures.panel_page(path, rows, CAPTION, colors=144)


def _row(vit, image, trace, maps, dense, index):
    """Panels of one photograph and one model: it, its tokens, its map."""
    patches, pixels = math.prod(trace.grid), image.shape[:2]
    image = token_pictures.enlarged(image)
    panels = [(vit.label, image, f"{vit.gmacs:.2f} GMACs")]
    steps = [stage.source[index] for stage in trace.stages]
    colors = token_pictures.outline_colors(steps, trace.grid)
    for block in AFTER:
        before = [stage for stage in trace.stages if stage.block <= block]
        source = before[-1].source[index] if before else np.arange(patches)
        tokens = before[-1].tokens if before else patches
        drawn = token_pictures.draw_groups(image, source, trace.grid, colors)
        panels.append((f"after block {block}", drawn, f"{tokens} tokens"))
    drawn = token_pictures.draw_values(image, maps[index].ravel(), pixels)
    (iou,) = overlap(maps[[index]], dense[[index]])
    note = "" if vit.reduction == settings.DENSE else f"IoU {iou:.2f}"
    return [*panels, ("map", drawn, note)]
