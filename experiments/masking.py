"""Table 4: accuracy when random squares of the image are covered.

The paper leaves open where the squares may lie and what they show. Here: anywhere
inside the image, they may overlap, and they show the mean color, 0 once normalized. An
image's squares depend only on (mask seed, index): all methods see the same, and more
squares are the fewer ones with others added. Three mask seeds.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import intervals, published, render, tables
from experiments.rows import DENSE, find
from imagepiece_jax.common import plotting
from imagepiece_jax.evaluate.cache import Split
from imagepiece_jax.evaluate.statistics import format_difference, format_estimate

SIDE = 16  # pixels of a square
SEEDS = (0, 1, 2)
MAX_MASKS = max(published.MASKS)
ROWS = (
    *(DENSE, tables.DYNAMICVIT, tables.EVIT, tables.TOME),
    *(tables.IMAGEPIECE, tables.IMAGEPIECE_PATCH, tables.DENSE_CONV),
)


def masking(context):
    """Measure every model at every number of squares; masking.md and a plot."""
    models = {}
    for row in ROWS:
        for pretrained, reduction in find(context, row)[:1]:
            # Fresh selectors say nothing of the method.
            if not pretrained.lacks_selectors(reduction):
                models[row] = pretrained, reduction
    counts = (0, *published.MASKS)
    by_row = {
        row: [_rights(context, model, count) for count in counts]
        for row, model in models.items()
    }
    head = ["model", "figure", *(f"{count} masks" for count in counts), "mean, masked"]
    lines = []
    for row in ROWS:
        lines += _lines(row, by_row.get(row), by_row.get(DENSE))
    path = context.out / "masking.png"
    series = {
        row.name: [*zip(counts, map(intervals.accuracy, rights), strict=True)]
        for row, rights in by_row.items()
    }
    plotting.draw_curves(path, "masks of 16 x 16 pixels", "accuracy, %", series)
    title = "accuracy behind random masks"
    squares = f"{SIDE} pixels, mean, anywhere"
    more = {"squares": squares, "mask seeds, in the intervals": len(SEEDS)}
    text = render.table(head, lines)
    facts = render.facts(context, more)
    render.page(context, "masking", title, text, facts)


def _lines(row, rights, dense):
    """Published, measured, and paired with dense: the lines of one model."""
    lines = []
    if row.name in published.MASKING:
        printed = [render.number(acc1) for acc1 in published.MASKING[row.name]]
        lines.append(
            [row.name, f"acc1, %, DeiT-S ({published.LABEL})", "", *printed, ""]
        )
    if rights is None:
        blanks = [render.BLANK] * (len(published.MASKS) + 2)
        return [*lines, [row.name, "acc1, % (measured)", *blanks]]
    masked = 100 * np.mean(rights[1:], axis=(0, 1))  # [images]
    estimates = [*map(intervals.accuracy, rights), intervals.mean(masked)]
    lines.append([row.name, "acc1, % (measured)", *map(format_estimate, estimates)])
    if dense is not None and row != DENSE:
        changes = [*map(intervals.difference, rights, dense)]
        changes += [intervals.mean(masked - 100 * np.mean(dense[1:], axis=(0, 1)))]
        cells = map(format_difference, changes)
        lines.append([row.name, "to dense, points (paired)", *cells])
    return lines


def _rights(context, model, count):
    """bool [mask seeds, images]; without squares one evaluation stands for all."""
    if count == 0:
        return [context.evaluate(*model).right] * len(SEEDS)
    return [
        context.evaluate(*model, covered(context.images, count, seed)).right
        for seed in SEEDS
    ]


def covered(images, count, seed) -> Split:
    """`images` with `count` squares each."""
    mask = {"masks": count, "square": SIDE, "mask_seed": seed}
    prepare = functools.partial(with_corners, count=count, seed=seed)
    return Split(images.setting | mask, lambda: map(prepare, images.batches()), cover)


def with_corners(batch, count, seed):
    """`batch` with "corners", as `cover` reads them, of `count` squares an image.

    There are MAX_MASKS for any count, so that one program serves all: the rest lies
    outside of the image.
    """
    side = batch["image"].shape[-2]
    corners = corners_of(batch["index"], count, seed, side)
    spare = [(0, 0)] * (corners.ndim - 2) + [(0, MAX_MASKS - count), (0, 0)]
    return batch | {"corners": np.pad(corners, spare, constant_values=-SIDE)}


def corners_of(index, count: int, seed: int, side: int) -> np.ndarray:
    """Top left corners of each image's squares. int [...] -> int32 [..., count, 2].

    (row, column) from 0 to side - SIDE, only by (seed, index): the first corners of a
    larger `count` are those of a smaller one.
    """
    flat = np.ravel(index)
    corners = np.empty((len(flat), count, 2), np.int32)
    for place, image in enumerate(flat):
        key = np.random.Philox(key=[seed, 0], counter=[0, 0, 0, int(image)])
        draw = np.random.Generator(key)
        corners[place] = draw.integers(0, side - SIDE + 1, (count, 2))
    return corners.reshape(*np.shape(index), count, 2)


def cover(images: jax.Array, batch: dict, model) -> jax.Array:
    """Normalized images [m, S, S, 3], 0 in the squares of batch["corners"]."""
    place = jnp.arange(images.shape[1])[None, None, None, :]
    corner = batch["corners"][..., None]  # [m, count, 2, 1]
    within = (place >= corner) & (place < corner + SIDE)
    rows = within[:, :, 0, :, None]
    columns = within[:, :, 1, None, :]
    covered = jnp.any(rows & columns, axis=1)[..., None]
    return jnp.where(covered, 0.0, images)
