"""Fidelity: how near a model's outputs are to the dense model's, image by image.

Controls are the dense model's own outputs: of images with two changes, and in another
order, which is chance.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from imagepiece_jax.common import statistics
from imagepiece_jax.common.checks import check_range
from imagepiece_jax.errors import InputError

NUM_NEIGHBORS = 10
# With fewer images, all others would be among the nearest.
MIN_COMPARED_IMAGES = NUM_NEIGHBORS + 2
IMAGES_PER_BLOCK = 1000  # images whose cosines to all others are in memory at once
JPEG_QUALITY = 75  # of the control's JPEG files
SHUFFLED_CONTROL = "shuffled"  # the control by chance
FIDELITY_COLUMNS = {
    "first_class": "first class as dense, %",
    "cosine_mean": "cosine, mean",
    "cosine_worst": "worst",
    "neighbors_kept": "ten nearest kept, %",
    "difference": "difference, % of the dense spread",
}


def check_image_count(image_count: int) -> None:
    """Check that images are enough to have ten nearest ones among others."""
    check_range("number of images to compare", image_count, MIN_COMPARED_IMAGES)


def measure_fidelity(
    outputs: Float[np.ndarray, "images dim"],
    dense_outputs: Float[np.ndarray, "images dim"],
    has_classes: bool | None,
) -> dict[str, Any]:
    """Compare outputs with the dense model's on the same images, as JSON values.

    outputs, dense_outputs: logits or vectors
    has_classes: whether they are logits; None: they are a regression's numbers
    Returns first_class (% of images with the dense model's first class, or side of 0)
        of logits, difference (root mean square, in % of the dense model's deviation) of
        numbers, or cosine_mean and cosine_worst of vectors. Vectors and logits of
        MIN_COMPARED_IMAGES or more also have neighbors_kept: % of the dense model's ten
        nearest images, by cosine, that stay among the ten nearest. Percentages have the
        ends of their 95 % interval.
    Raises InputError if dense outputs or numbers are not finite.
    """
    is_scalar = dense_outputs.shape[1] == 1  # which has no direction for cosines
    is_regression = not has_classes and (has_classes is None or is_scalar)
    has_finite_reference = np.isfinite(dense_outputs).all()
    if not has_finite_reference or (is_regression and not np.isfinite(outputs).all()):
        raise InputError("the model's outputs are not finite for all images")
    unit_outputs = unit_rows(outputs)
    dense_units = unit_rows(dense_outputs)
    is_finite = unit_outputs.any(1)  # [images]; zeros stand for NaN
    metrics: dict[str, Any] = {}
    if has_classes:
        is_same_class = outputs.argmax(1) == dense_outputs.argmax(1)
        if is_scalar:  # two classes, one on either side of 0
            is_same_class = (outputs[:, 0] > 0) == (dense_outputs[:, 0] > 0)
        metrics["first_class"] = statistics.estimate_accuracy(is_same_class & is_finite)
    elif is_regression:
        # At least 1e-30: numbers that are the same for all images deviate by 0.
        deviation = np.maximum(dense_outputs.std(axis=0), 1e-30)
        squared_errors = (np.float64(outputs - dense_outputs) / deviation) ** 2
        image_errors = squared_errors.mean(axis=1)
        # From 0, which has no errors; an interval's lower end may be negative.
        mean_error = statistics.mean_difference(image_errors, 0 * image_errors)
        percents = 100 * np.sqrt(np.maximum(mean_error, 0))
        metrics["difference"] = statistics.Estimate(*percents.tolist())
    else:
        cosines = np.sum(unit_outputs * dense_units, axis=1)
        metrics["cosine_mean"] = float(cosines.mean())
        metrics["cosine_worst"] = float(cosines.min())
    if not (is_regression or is_scalar) and len(dense_outputs) >= MIN_COMPARED_IMAGES:
        neighbors = nearest_images(unit_outputs)
        num_kept = count_shared(neighbors, nearest_images(dense_units))
        kept_percents = 100 * num_kept / NUM_NEIGHBORS
        metrics["neighbors_kept"] = statistics.mean_share(kept_percents * is_finite)
    if np.array_equal(outputs, dense_outputs):  # itself, where nothing is by chance
        for name, metric in metrics.items():
            if isinstance(metric, statistics.Estimate):
                metrics[name] = statistics.Estimate(*[metric.value] * 3)  # no interval
    return metrics


def unit_rows(outputs: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    """Scale rows to length 1, in float64; a row with NaN or infinity becomes 0."""
    rows = np.asarray(outputs, np.float64)
    rows = np.where(np.isfinite(rows).all(1, keepdims=True), rows, 0)
    # At least 1e-30: a row of zeros stays.
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def nearest_images(
    rows: Float[np.ndarray, "images dim"],
) -> Int[np.ndarray, "images neighbors"]:
    """Find the NUM_NEIGHBORS nearest other images of every image, the nearest first.

    rows: unit rows, one per image
    """
    neighbor_blocks = []
    for start in range(0, len(rows), IMAGES_PER_BLOCK):
        cosines = rows[start : start + IMAGES_PER_BLOCK] @ rows.T  # [block, images]
        np.fill_diagonal(cosines[:, start:], -np.inf)  # no image neighbors itself
        nearest_order = np.argsort(-cosines, axis=1, kind="stable")
        neighbor_blocks.append(nearest_order[:, :NUM_NEIGHBORS])
    return np.concatenate(neighbor_blocks)


def count_shared(
    neighbors: Int[np.ndarray, "images neighbors"],
    dense_neighbors: Int[np.ndarray, "images neighbors"],
) -> Int[np.ndarray, " images"]:
    """Count common neighbors."""
    # [images, neighbors, dense neighbors]
    is_equal = neighbors[:, :, None] == dense_neighbors[:, None, :]
    return is_equal.any(axis=2).sum(axis=1)


def shuffle_outputs(outputs: Float[np.ndarray, "images dim"]) -> np.ndarray:
    """Outputs in another order, so that an image has a random image's."""
    return np.random.default_rng(0).permutation(outputs)


def fidelity_cells(metrics: Mapping[str, Any]) -> dict[str, str]:
    """A table row's cells by column; `metrics` are from `measure_fidelity`."""
    cells = {}
    for name, metric in metrics.items():
        if isinstance(metric, float):
            text = f"{metric:.4f}"
        elif metric[1] == metric[2]:  # value, low, high: no interval
            text = f"{metric[0]:.1f}"
        else:  # a list, if read from JSON
            text = statistics.format_estimate(statistics.Estimate(*metric))
        cells[FIDELITY_COLUMNS[name]] = text
    return cells


def compress_images(pixels: UInt8[np.ndarray, "images height width 3"]) -> np.ndarray:
    """Compress images to JPEG files of JPEG_QUALITY, and decode them."""
    decoded_images = []
    for image in pixels:
        jpeg_file = io.BytesIO()
        Image.fromarray(image).save(jpeg_file, "JPEG", quality=JPEG_QUALITY)
        decoded_images.append(np.asarray(Image.open(jpeg_file)))
    return np.stack(decoded_images)


IMAGE_CONTROLS = {
    f"JPEG {JPEG_QUALITY}": compress_images,
    "mirrored": lambda pixels: pixels[:, :, ::-1],
}
CONTROLS = (*IMAGE_CONTROLS, SHUFFLED_CONTROL)
