"""Fidelity: how near a model's outputs are to the dense model's, image by image.

Controls are the dense model's own outputs: of images with two changes, and in another
order, which is chance.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from imagepiece_jax.common import statistics
from imagepiece_jax.common.progress import notes
from imagepiece_jax.errors import InputError

NUM_NEIGHBORS = 10
MIN_COMPARED_IMAGES = (
    NUM_NEIGHBORS + 2
)  # with fewer, all others would be among the nearest
IMAGES_PER_BLOCK = 1000  # images whose cosines to all others are in memory at once
JPEG_QUALITY = 75  # of the control's JPEG files
# A text's recall is the mean over these numbers of nearest images, as immich lists it.
RECALL_RANKS = (1, 5, 10)
SHUFFLED_CONTROL = "shuffled"  # the control by chance
FIDELITY_COLUMNS = {
    "first_class": "first class as dense, %",
    "cosine_mean": "cosine, mean",
    "cosine_worst": "worst",
    "recall": "recall at 1, 5, 10 (mean), %",
    "recall_points": "points of recall",
    "voted_right": "vote of ten nearest right, %",
    "voted_points": "points of votes",
    "neighbors_kept": "ten nearest kept, %",
    "difference": "difference, % of the dense spread",
}


class Annotations(NamedTuple):
    """What images show; None: unknown."""

    classes: np.ndarray | None = None  # [images], numbers or folder names
    texts: np.ndarray | None = None  # [texts, D], vectors of a text tower
    described: np.ndarray | None = None  # int [texts], every text's image; -1: none

    @property
    def setting(self) -> dict[str, str]:
        """{"annotations": digest}; {} if nothing is known."""
        known = [part.tobytes() for part in self if part is not None]
        if not known:
            return {}
        return {"annotations": hashlib.sha256(b"|".join(known)).hexdigest()[:16]}

    def subset(self, indices: Sequence[int]) -> "Annotations":
        """Annotations of the images at `indices`, in that order.

        Classes with single images are left out, with a note.
        Raises InputError if texts describe fewer than MIN_IMAGES of the images.
        """
        classes, texts, described = self
        if classes is not None:
            classes = classes[np.asarray(indices)]
            names, counts = np.unique(classes, return_counts=True)
            if len(names) < 2 or counts.min() < 2:
                few = names.tolist()[counts.argmin()]
                notes.info(
                    "note: images do not vote by class, which needs two classes of two "
                    f"images or more, but class {few!r} has {counts.min()} of "
                    f"{len(classes)}"
                )
                classes = None
        if texts is not None:
            place_of = {int(index): place for place, index in enumerate(indices)}
            described = np.array([place_of.get(i, -1) for i in described.tolist()])
            texts = texts[described >= 0]
            described = described[described >= 0]
            count = len({*described.tolist()})
            if count < MIN_COMPARED_IMAGES:
                raise InputError(
                    f"texts describe {count} of the {len(indices)} compared images; "
                    f"{MIN_COMPARED_IMAGES} or more are needed"
                )
        return Annotations(classes, texts, described)


def measure_fidelity(
    outputs: np.ndarray,
    dense: np.ndarray,
    has_classes: bool | None,
    known: Annotations | None = None,
) -> dict[str, Any]:
    """Compare outputs with the dense model's on the same images, as JSON values.

    outputs, dense: logits or vectors, [images, D]
    has_classes: whether they are logits; None: they are a regression's numbers
    known: what the images show; None: unknown
    Returns first_class (% of images with the dense model's first class, or side of 0)
        of logits, difference (root mean square, in % of the dense model's deviation) of
        numbers, or cosine_mean and cosine_worst of vectors. Vectors and logits of
        MIN_IMAGES or more also have neighbors_kept (% of the dense model's ten nearest
        images, by cosine, that stay among the ten nearest), and by what is known
        recall (`text_recall`), voted_right (% of images whose ten nearest vote for their
        class), and for other outputs the points of both to the dense model, paired by
        image. Percentages and points have the ends of their 95 % interval.
    Raises InputError if dense outputs or numbers are not finite.
    """
    is_number = not has_classes and (has_classes is None or dense.shape[1] == 1)
    needed = [outputs, dense] if is_number else dense
    if not np.isfinite(needed).all():
        raise InputError("the model's outputs are not finite for all images")
    own = unit_rows(outputs)
    is_answer = own.any(1)  # NaN is none
    base = unit_rows(dense)
    figures = {}
    is_single = dense.shape[1] == 1  # which has no direction
    if has_classes:
        same = outputs.argmax(1) == dense.argmax(1)
        if is_single:
            same = (outputs[:, 0] > 0) == (dense[:, 0] > 0)
        same &= is_answer
        figures["first_class"] = statistics.estimate_accuracy(same)
    elif is_number:
        spreads = np.float64(outputs - dense) / np.maximum(dense.std(axis=0), 1e-30)
        change = 100 * np.sqrt(np.mean(spreads**2, axis=1))
        figures["difference"] = statistics.mean_difference(change, 0 * change)
    else:
        cosines = np.sum(own * base, axis=1)
        figures["cosine_mean"] = float(cosines.mean())
        figures["cosine_worst"] = float(cosines.min())
    if has_classes is None or is_single or len(dense) < MIN_COMPARED_IMAGES:
        return figures
    own_nearest = nearest_images(own, own)
    base_nearest = nearest_images(base, base)
    is_changed = not np.array_equal(outputs, dense)
    classes, texts, described = known or Annotations()
    if texts is not None:
        found = text_recall(own, texts, described)
        base_found = text_recall(base, texts, described)
        figures["recall"] = statistics.mean_share(found)
        if is_changed:
            figures["recall_points"] = statistics.mean_difference(found, base_found)
    if classes is not None:
        right = is_answer & (voted_classes(own, own_nearest, classes) == classes)
        base_right = voted_classes(base, base_nearest, classes) == classes
        figures["voted_right"] = statistics.estimate_accuracy(right)
        if is_changed:
            figures["voted_points"] = statistics.paired_difference(right, base_right)
    kept = 100 * count_shared(own_nearest, base_nearest) / NUM_NEIGHBORS
    figures["neighbors_kept"] = statistics.mean_share(kept * is_answer)
    return figures


def measure_fidelities(
    rows: Mapping[str, np.ndarray], has_classes: bool | None, known: Annotations
) -> dict[str, dict[str, Any]]:
    """Measure the fidelity of every row's outputs, and of shuffled dense outputs."""
    dense = rows["dense"]
    rows = {**rows, SHUFFLED_CONTROL: shuffle_outputs(dense)}
    return {
        name: measure_fidelity(own, dense, has_classes, known)
        for name, own in rows.items()
    }


def unit_rows(outputs: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64; zeros for a row with NaN or infinity."""
    rows = np.asarray(outputs, np.float64)
    rows = np.where(np.isfinite(rows).all(1, keepdims=True), rows, 0)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def nearest_images(queries: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Indices of every query's nearest rows of `index`. -> int [n, NEIGHBORS].

    queries, index: unit rows [n, D]; rows i of both are one image, no neighbor of
        itself
    """
    parts = []
    for start in range(0, len(queries), IMAGES_PER_BLOCK):
        cosines = queries[start : start + IMAGES_PER_BLOCK] @ index.T
        np.fill_diagonal(cosines[:, start:], -np.inf)
        order = np.argsort(-cosines, axis=1, kind="stable")
        parts.append(order[:, :NUM_NEIGHBORS])
    return np.concatenate(parts)


def count_shared(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Count common neighbors. int [n, k] twice -> [n]."""
    return (ours[:, :, None] == theirs[:, None, :]).any(axis=2).sum(axis=1)


def text_recall(
    rows: np.ndarray, texts: np.ndarray, described: np.ndarray
) -> np.ndarray:
    """Recall of text to image, %, the mean over RANKS. -> [described images].

    An image of several texts has their mean.

    rows: unit rows [images, D]; zeros are never found
    texts: vectors [texts, D]
    described: every text's image, int [texts]
    """
    hits = np.zeros(len(texts))
    for start in range(0, len(texts), IMAGES_PER_BLOCK):
        part = slice(start, start + IMAGES_PER_BLOCK)
        cosines = unit_rows(texts[part]) @ rows.T
        own = np.take_along_axis(cosines, described[part, None], axis=1)
        ahead = np.sum(cosines >= own, axis=1) - 1  # equal images are ahead
        hits[part] = np.mean(ahead[:, None] < RECALL_RANKS, axis=1)
    hits *= rows.any(axis=1)[described]
    _, images = np.unique(described, return_inverse=True)
    return 100 * np.bincount(images, hits) / np.bincount(images)


def voted_classes(
    rows: np.ndarray, near: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """The class with most votes of the nearest images, which vote by cosine. [images].

    rows: unit rows [images, D]
    near: from `nearest_images`
    """
    names, numbers = np.unique(classes, return_inverse=True)
    votes = np.zeros((len(rows), len(names)))
    has_votes = np.zeros(votes.shape, bool)
    images = np.arange(len(rows))
    for column in near.T:
        votes[images, numbers[column]] += np.sum(rows * rows[column], axis=1)
        has_votes[images, numbers[column]] = True
    votes[~has_votes] = -np.inf  # cosines may be negative
    return names[votes.argmax(axis=1)]


def shuffle_outputs(outputs: np.ndarray) -> np.ndarray:
    """Outputs in another order, so that an image has a random image's."""
    return np.random.default_rng(0).permutation(outputs)


def fidelity_cells(figures: Mapping[str, Any]) -> dict[str, str]:
    """A table row's cells by column, from `measure_fidelity`."""
    row = {}
    for name, value in figures.items():
        if isinstance(value, float):
            row[FIDELITY_COLUMNS[name]] = f"{value:.4f}"
        else:
            estimate = statistics.Estimate(*value)
            is_change = name.endswith("points")
            row[FIDELITY_COLUMNS[name]] = statistics.format_estimate(
                estimate, signs=is_change
            )
    return row


def compress_images(pixels: np.ndarray) -> np.ndarray:
    """Images through JPEG files of QUALITY. uint8 [images, H, W, 3]"""
    decoded = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY)
        decoded.append(np.asarray(Image.open(file)))
    return np.stack(decoded)


IMAGE_CONTROLS = {
    f"JPEG {JPEG_QUALITY}": compress_images,
    "mirrored": lambda pixels: pixels[:, :, ::-1],
}
