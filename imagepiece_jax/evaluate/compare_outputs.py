"""Fidelity: how near a model's outputs are to the dense model's, image by image.

Two changes of the images are controls: how far the dense model's own outputs move.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from imagepiece_jax.evaluate import statistics

NEIGHBORS = 10
QUALITY = 75  # of the control's JPEG files
COLUMNS = {
    "first_class": "first class as dense, %",
    "cosine_mean": "cosine, mean",
    "cosine_worst": "worst",
    "neighbors_kept": "ten nearest kept, %",
}


def fidelity(
    outputs: np.ndarray, dense: np.ndarray, has_classes: bool
) -> dict[str, Any]:
    """Compare outputs with the dense model's on the same images, as JSON values.

    outputs, dense: logits or vectors, [images, D], of two images or more
    has_classes: whether they are logits
    Returns first_class (% of images with the dense model's first class) of logits, or
        cosine_mean and cosine_worst of vectors, and neighbors_kept (% of the dense
        model's ten nearest images, by cosine, that stay among the ten nearest).
        Percentages have the ends of their 95 % interval.
    """
    own = unit(outputs)
    is_answer = own.any(1)  # NaN is none
    base = unit(dense)
    figures = {}
    if has_classes:
        same = outputs.argmax(1) == dense.argmax(1)
        same &= is_answer
        figures["first_class"] = statistics.accuracy(same)
    else:
        cosines = np.sum(own * base, axis=1)
        figures["cosine_mean"] = float(cosines.mean())
        figures["cosine_worst"] = float(cosines.min())
    shared = nearest(own) & nearest(base)
    kept = 100 * shared.sum(1) / min(NEIGHBORS, len(own) - 1)
    kept *= is_answer
    figures["neighbors_kept"] = statistics.mean_difference(kept, np.zeros(len(kept)))
    return figures


def unit(outputs: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64; zeros for a row with NaN or infinity."""
    rows = np.asarray(outputs, np.float64)
    rows = np.where(np.isfinite(rows).all(1, keepdims=True), rows, 0)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def nearest(rows: np.ndarray) -> np.ndarray:
    """Whether image j is among the NEIGHBORS nearest others of image i. -> [n, n]."""
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1, kind="stable")
    is_near = np.zeros(cosines.shape, bool)
    count = min(NEIGHBORS, len(rows) - 1)
    np.put_along_axis(is_near, order[:, :count], True, axis=1)
    return is_near


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
