"""Fidelity: how near a model's outputs are to the dense model's, image by image.

Two changes of the images are controls: how far the dense model's own outputs move.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics

NEIGHBORS = 10
MIN_IMAGES = NEIGHBORS + 2  # with fewer, all others would be among the nearest
BLOCK = 1000  # images whose cosines to all others are in memory at once
QUALITY = 75  # of the control's JPEG files
COLUMNS = {
    "first_class": "first class as dense, %",
    "cosine_mean": "cosine, mean",
    "cosine_worst": "worst",
    "neighbors_kept": "ten nearest kept, %",
    "difference": "difference, % of the dense spread",
}


def fidelity(
    outputs: np.ndarray, dense: np.ndarray, has_classes: bool | None
) -> dict[str, Any]:
    """Compare outputs with the dense model's on the same images, as JSON values.

    outputs, dense: logits or vectors, [images, D], of MIN_IMAGES or more
    has_classes: whether they are logits; None: they are a regression's numbers
    Returns first_class (% of images with the dense model's first class, or side of 0)
        of logits, difference (root mean square, in % of the dense model's deviation) of
        numbers, or cosine_mean and cosine_worst of vectors. Vectors and logits also
        have neighbors_kept (% of the dense model's ten nearest images, by cosine, that
        stay among the ten nearest). Percentages have the ends of their 95 % interval.
    Raises InputError if dense outputs or numbers are not finite.
    """
    is_number = not has_classes and (has_classes is None or dense.shape[1] == 1)
    needed = [outputs, dense] if is_number else dense
    if not np.isfinite(needed).all():
        raise InputError("the model's outputs are not finite for all images")
    own = unit(outputs)
    is_answer = own.any(1)  # NaN is none
    base = unit(dense)
    figures = {}
    is_single = dense.shape[1] == 1  # which has no direction
    if has_classes:
        same = outputs.argmax(1) == dense.argmax(1)
        if is_single:
            same = (outputs[:, 0] > 0) == (dense[:, 0] > 0)
        same &= is_answer
        figures["first_class"] = statistics.accuracy(same)
    elif is_number:
        spreads = np.float64(outputs - dense) / np.maximum(dense.std(axis=0), 1e-30)
        change = 100 * np.sqrt(np.mean(spreads**2, axis=1))
        figures["difference"] = statistics.mean_difference(change, 0 * change)
    else:
        cosines = np.sum(own * base, axis=1)
        figures["cosine_mean"] = float(cosines.mean())
        figures["cosine_worst"] = float(cosines.min())
    if has_classes is None or is_single:
        return figures
    kept = 100 * shared(nearest(own, own), nearest(base, base)) / NEIGHBORS
    kept *= is_answer
    figures["neighbors_kept"] = statistics.mean_difference(kept, np.zeros(len(kept)))
    return figures


def unit(outputs: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64; zeros for a row with NaN or infinity."""
    rows = np.asarray(outputs, np.float64)
    rows = np.where(np.isfinite(rows).all(1, keepdims=True), rows, 0)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def nearest(queries: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Indices of every query's nearest rows of `index`. -> int [n, NEIGHBORS].

    queries, index: unit rows [n, D]; rows i of both are one image, no neighbor of
        itself
    """
    parts = []
    for start in range(0, len(queries), BLOCK):
        cosines = queries[start : start + BLOCK] @ index.T
        np.fill_diagonal(cosines[:, start:], -np.inf)
        order = np.argsort(-cosines, axis=1, kind="stable")
        parts.append(order[:, :NEIGHBORS])
    return np.concatenate(parts)


def shared(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Count common neighbors. int [n, k] twice -> [n]."""
    return (ours[:, :, None] == theirs[:, None, :]).any(axis=2).sum(axis=1)


def cells(figures: Mapping[str, Any]) -> dict[str, str]:
    """A table row's cells by column, from `fidelity`."""
    row = {}
    for name, value in figures.items():
        if isinstance(value, float):
            row[COLUMNS[name]] = f"{value:.4f}"
        else:
            estimate = statistics.Estimate(*value)
            row[COLUMNS[name]] = statistics.format_estimate(estimate)
    return row


def compressed(pixels: np.ndarray) -> np.ndarray:
    """Images through JPEG files of QUALITY. uint8 [images, H, W, 3]"""
    decoded = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=QUALITY)
        decoded.append(np.asarray(Image.open(file)))
    return np.stack(decoded)


CONTROLS = {
    f"JPEG {QUALITY}": compressed,
    "mirrored": lambda pixels: pixels[:, :, ::-1],
}
