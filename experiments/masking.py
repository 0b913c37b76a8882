"""Table 4: accuracy when random squares of the image are covered.

The paper leaves open where the squares may lie and what they show. Here they lie
anywhere inside the image, may overlap, and show the mean color (0 once normalized). An
image's squares depend only on (mask seed, index): all methods see the same, and a
larger number of squares adds to a smaller one's. There are three mask seeds.
"""

import functools
import types

import jax.numpy as jnp
import numpy as np

from experiments import intervals, paper_tables, published
from experiments.paper_tables import BLANK, DENSE, find_models
from imagepiece_jax.common import plotting
from imagepiece_jax.common.statistics import format_difference, format_estimate
from imagepiece_jax.common.tables import markdown_table

SIDE = 16  # pixels of a square
SEEDS = (0, 1, 2)
MAX_MASKS = max(published.MASKS)
COUNTS = (0, *published.MASKS)
ROWS = (DENSE, paper_tables.DYNAMICVIT, paper_tables.EVIT, paper_tables.TOME)
ROWS += (paper_tables.IMAGEPIECE, paper_tables.IMAGEPIECE_PATCH)
ROWS += (paper_tables.DENSE_CONV,)


def write_masking_page(study):
    """Measure every model at every number of squares; masking.md and a plot."""
    rights = {}
    for row in ROWS:
        for vit, reduction in find_models(study, row)[:1]:
            # Fresh selectors say nothing of the method.
            if "selectors" not in vit.with_reduction(reduction, seed=0).untrained_kinds:
                measure = functools.partial(measure_rights, study, (vit, reduction))
                rights[row] = [*map(measure, COUNTS)]
    lines = []
    series = {}
    for row in ROWS:
        lines += published_lines(row)
        lines += measured_lines(row, rights.get(row), rights.get(DENSE))
        if row in rights:
            accuracies = map(intervals.estimate_accuracy, rights[row])
            series[row.name] = list(zip(COUNTS, accuracies, strict=True))
    axes = f"masks of {SIDE} x {SIDE} pixels", "accuracy, %"
    plotting.draw_curves(study.out / "masking.png", *axes, series)
    head = ["model", "figure", *(f"{count} masks" for count in COUNTS), "mean, masked"]
    squares = f"{SIDE} pixels, mean, anywhere"
    more = {"squares": squares, "mask seeds, in the intervals": len(SEEDS)}
    title = "accuracy behind random masks"
    table = markdown_table(head, lines)
    study.write_page("masking", title, table, study.facts(more))


def published_lines(row):
    if row.name not in published.MASKING:
        return []
    figures = [published.format_figure(acc1) for acc1 in published.MASKING[row.name]]
    label = f"acc1, %, DeiT-S ({published.LABEL})"
    return [[row.name, label, "", *figures, ""]]


def measured_lines(row, rights, dense):
    """A model's lines: accuracy, and its paired difference from the dense model's.

    rights, dense: bool [counts, mask seeds, images]; None: not measured
    """
    name = "acc1, % (measured)"
    if rights is None:
        blanks = [BLANK] * (len(COUNTS) + 1)
        return [[row.name, name, *blanks]]
    masked = masked_mean(rights)
    estimates = [intervals.estimate_accuracy(right) for right in rights]
    estimates.append(intervals.estimate_mean(masked))
    lines = [[row.name, name, *map(format_estimate, estimates)]]
    if dense is not None and row != DENSE:
        changes = []
        for right, base in zip(rights, dense, strict=True):
            changes.append(intervals.estimate_difference(right, base))
        changes.append(intervals.estimate_mean(masked - masked_mean(dense)))
        cells = map(format_difference, changes)
        lines.append([row.name, "to dense, points (paired)", *cells])
    return lines


def masked_mean(rights):
    """Percent of right answers over each image's masked copies. [images]."""
    return 100 * np.mean(rights[1:], axis=(0, 1))


def measure_rights(study, model, count):
    """bool [mask seeds, images]; without squares one evaluation stands for all."""
    if count == 0:
        return [study.evaluate(*model).right] * len(SEEDS)
    rights = []
    for seed in SEEDS:
        images = cover_images(study.images, count, seed)
        rights.append(study.evaluate(*model, images).right)
    return rights


def cover_images(images, count, seed):
    """The images with `count` squares each."""
    return types.SimpleNamespace(
        facts=images.facts | {"masks": count, "square": SIDE, "mask_seed": seed},
        read_batches=lambda: (
            with_corners(batch, count, seed) for batch in images.read_batches()
        ),
        alter_images=hide_squares,
    )


def with_corners(batch, count, seed):
    """Add "corners" of `count` squares an image to a batch, as `hide_squares` reads.

    There are always MAX_MASKS, so one program serves all counts: the rest lies outside
    the image.
    """
    side = batch["image"].shape[-2]
    drawn = draw_corners(batch["index"], count, seed, side)
    *images, _, two = drawn.shape
    corners = np.full((*images, MAX_MASKS, two), -SIDE, np.int32)
    corners[..., :count, :] = drawn
    return batch | {"corners": corners}


def draw_corners(index, count, seed, side):
    """Top left corners of each image's squares. int [...] -> int32 [..., count, 2].

    Corners are (row, column) from 0 to side - SIDE, and depend only on (seed, index): a
    larger `count` begins with a smaller one's corners.
    """
    corners = []
    for image in np.ravel(index):
        counter = [0, 0, 0, int(image)]
        generator = np.random.Philox(key=[seed, 0], counter=counter)
        draw = np.random.Generator(generator)
        corners.append(draw.integers(0, side - SIDE + 1, (count, 2)))
    shape = (*np.shape(index), count, 2)
    return np.array(corners, np.int32).reshape(shape)


def hide_squares(images, batch, model):
    """Normalized images [m, S, S, 3], 0 in the squares of batch["corners"]."""
    index = jnp.arange(images.shape[1])[None, None, None, :]
    corner = batch["corners"][..., None]  # [m, count, 2, 1]
    within = (index >= corner) & (index < corner + SIDE)
    rows = within[:, :, 0, :, None]
    columns = within[:, :, 1, None, :]
    inside = jnp.any(rows & columns, axis=1)
    return jnp.where(inside[..., None], 0.0, images)
