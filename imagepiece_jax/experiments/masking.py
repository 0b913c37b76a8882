"""Table 4: how does accuracy fall when squares of the image are covered?

The paper leaves open where the squares may lie and what they show. Here: anywhere
inside the image, they may overlap, and they show the mean colour, 0 once normalised;
--mask_grid puts them on different patches, --mask_fill makes them black or noise. An
image's squares depend on (mask seed, index) alone: all methods see the same, and more
squares are the fewer ones with others added. Three mask seeds.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.experiments import published, render, table1, table2
from imagepiece_jax.experiments.rows import DENSE, find, form

SIDE = 16  # pixels of a square
SEEDS = (0, 1, 2)
MOST = max(published.MASKS)
FILLS = ("mean", "black", "noise")
ROWS = (
    DENSE,
    table1.DYNAMICVIT,
    table1.EVIT,
    table2.TOME,
    table1.IMAGEPIECE,
    table1.IMAGEPIECE_PATCH,
    table1.DENSE_CONV,
)


def run(lab):
    """Measure every model at every number of squares; masking.md and a plot."""
    models = {row: model for row in ROWS for model in find(lab, row)[:1]}
    models = {
        row: (subject, reduction)
        for row, (subject, reduction) in models.items()
        if not subject.untrained(reduction)  # says nothing of the method
    }
    counts = (0, *published.MASKS)
    fill, grid = lab.options["mask_fill"], lab.options["mask_grid"]
    alter = functools.partial(cover, fill=fill)
    told = {
        row: [_rights(lab, model, count, alter, grid) for count in counts]
        for row, model in models.items()
    }
    head = ["model", "figure", *(f"{count} masks" for count in counts), "mean, masked"]
    lines = []
    for row in ROWS:
        lines += _lines(row, told.get(row), told.get(DENSE))
    note = (
        f"Squares of {SIDE} pixels, filled with {fill}, "
        f"{'on different patches' if grid else 'anywhere'}; {len(SEEDS)} mask seeds, "
        "whose spread is in the intervals."
    )
    path = lab.out / "masking.png"
    series = {
        row.name: [
            (c, statistics.accuracy(r)) for c, r in zip(counts, rights, strict=True)
        ]
        for row, rights in told.items()
    }
    render.curves(path, "masks of 16 x 16 pixels", "accuracy, %", series)
    parts = [render.table(head, lines), note, render.images_note(lab) + " " + form(lab)]
    render.page(lab, "masking", "accuracy behind random masks", *parts)


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
    masked = [np.mean(each, axis=0) for each in rights[1:]]
    whole = statistics.mean(100 * np.mean(masked, axis=0))
    cells = [statistics.format_estimate(statistics.accuracy(each)) for each in rights]
    lines.append(
        [row.name, "acc1, % (measured)", *cells, statistics.format_estimate(whole)]
    )
    if dense is not None and row != DENSE:
        pairs = zip(rights, dense, strict=True)
        differences = [statistics.paired_difference(*pair) for pair in pairs]
        change = np.mean(masked, axis=0) - np.mean(np.mean(dense[1:], axis=1), axis=0)
        differences.append(statistics.mean(100 * change))
        cells = map(statistics.format_difference, differences)
        lines.append([row.name, "to dense, points (paired)", *cells])
    return lines


def _rights(lab, model, count, alter, grid):
    """[mask seeds, images] bool; without squares one seed's answers stand for all."""
    if count == 0:
        return [lab.answers(*model).right] * len(SEEDS)
    found, fill = [], alter.keywords["fill"]
    for seed in SEEDS:
        alteration = {"masks": count, "fill": fill, "grid": grid, "mask_seed": seed}

        def prepare(batch, seed=seed):
            side = batch["image"].shape[-2]
            corners = corners_of(batch["index"], count, seed, side, grid)
            # One program for all counts: the rest lies outside of the image.
            spare = [(0, 0)] * (corners.ndim - 2) + [(0, MOST - count), (0, 0)]
            outside = np.pad(corners, spare, constant_values=-SIDE)
            return batch | {"corners": outside}

        found.append(lab.altered(*model, alteration, alter, prepare).right)
    return found


def corners_of(index, count, seed, side, grid=False):
    """Top left corners of each image's squares. int [...] -> int32 [..., count, 2].

    (row, column) from 0 to side - 16, by (seed, index) alone: the first corners of a
    larger `count` are those of a smaller one. grid: on patches, all different.
    """
    flat = np.ravel(index)
    found = np.empty((len(flat), count, 2), np.int32)
    for place, image in enumerate(flat):
        key = np.random.Philox(key=[seed, 0], counter=[0, 0, 0, int(image)])
        draw = np.random.Generator(key)
        if grid:
            cells = draw.permutation((side // SIDE) ** 2)[:count]
            found[place] = SIDE * np.stack(np.divmod(cells, side // SIDE), axis=1)
        else:
            found[place] = draw.integers(0, side - SIDE + 1, (count, 2))
    return found.reshape(*np.shape(index), count, 2)


def cover(images, batch, model, fill="mean"):
    """Normalized images [m, S, S, 3] with the squares of batch["corners"] covered.

    fill: "mean" (0), "black", or "noise" of a normalized image's size, by the index.
    model: tells how they are normalized.
    """
    place = jnp.arange(images.shape[1])[None, None, None, :]
    corner = batch["corners"][..., None]  # [m, count, 2, 1]
    within = (place >= corner) & (place < corner + SIDE)
    rows, columns = within[:, :, 0, :, None], within[:, :, 1, None, :]
    covered = jnp.any(rows & columns, axis=1)[..., None]
    return jnp.where(covered, _shown(images, batch["index"], model, fill), images)


def _shown(images, index, model, fill):
    if fill == "mean":
        return jnp.zeros_like(images)
    if fill == "black":
        return normalize(jnp.zeros(images.shape, jnp.uint8), model.mean, model.std)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), index)
    draw = functools.partial(jax.random.normal, shape=images.shape[1:])
    return jax.vmap(draw)(keys)
