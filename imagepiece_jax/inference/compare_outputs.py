"""Fidelity: how near a model's outputs are to the dense model's, image by image.

Controls are the dense model's own outputs: of images with two changes, and in another
order, which is chance.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image

from imagepiece_jax.common import statistics
from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.progress import notes
from imagepiece_jax.errors import InputError

NUM_NEIGHBORS = 10
# With fewer images, all others would be among the nearest.
MIN_COMPARED_IMAGES = NUM_NEIGHBORS + 2
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

    classes: Shaped[np.ndarray, " images"] | None = None  # numbers or folder names
    text_vectors: Float[np.ndarray, "texts dim"] | None = None  # of a text tower
    image_of_text: Int[np.ndarray, " texts"] | None = None  # index; -1: none

    @property
    def digest_record(self) -> dict[str, str]:
        """{"annotations": digest}; {} if nothing is known."""
        known_bytes = [array.tobytes() for array in self if array is not None]
        if not known_bytes:
            return {}
        return {"annotations": hashlib.sha256(b"|".join(known_bytes)).hexdigest()[:16]}

    def select_images(self, indices: Sequence[int]) -> Self:
        """Annotations of the images at `indices`, in that order.

        Classes with single images are left out, with a note.
        Raises InputError if texts describe fewer than MIN_COMPARED_IMAGES images.
        """
        classes, text_vectors, image_of_text = self
        if classes is not None:
            classes = classes[np.asarray(indices)]
            class_names, image_counts = np.unique(classes, return_counts=True)
            if len(class_names) < 2 or image_counts.min() < 2:
                rarest_class = class_names.tolist()[image_counts.argmin()]
                notes.info(
                    "note: images do not vote by class, which needs two classes of two "
                    f"images or more, but class {rarest_class!r} has "
                    f"{image_counts.min()} of {len(classes)}"
                )
                classes = None
        if text_vectors is not None and image_of_text is not None:
            new_index = {
                old: new for new, old in enumerate(np.asarray(indices).tolist())
            }
            new_indices = [new_index.get(old, -1) for old in image_of_text.tolist()]
            is_selected = np.array(new_indices) >= 0
            text_vectors = text_vectors[is_selected]
            image_of_text = np.array(new_indices)[is_selected]
            num_described = len({*image_of_text.tolist()})
            if num_described < MIN_COMPARED_IMAGES:
                raise InputError(
                    f"texts describe {num_described} of the {len(indices)} compared "
                    f"images; {MIN_COMPARED_IMAGES} or more are needed"
                )
        return type(self)(classes, text_vectors, image_of_text)


def check_image_count(image_count: int) -> None:
    """Check that images are enough to have ten nearest ones among others."""
    check_range("number of images to compare", image_count, MIN_COMPARED_IMAGES)


def measure_fidelity(
    outputs: Float[np.ndarray, "images dim"],
    dense_outputs: Float[np.ndarray, "images dim"],
    has_classes: bool | None,
    annotations: Annotations | None = None,
) -> dict[str, Any]:
    """Compare outputs with the dense model's on the same images, as JSON values.

    outputs, dense_outputs: logits or vectors
    has_classes: whether they are logits; None: they are a regression's numbers
    annotations: what the images show; None: unknown
    Returns first_class (% of images with the dense model's first class, or side of 0)
        of logits, difference (root mean square, in % of the dense model's deviation) of
        numbers, or cosine_mean and cosine_worst of vectors. Vectors and logits of
        MIN_COMPARED_IMAGES or more also have neighbors_kept (% of the dense model's ten
        nearest images, by cosine, that stay among the ten nearest), and by what is
        known recall (`text_recall`), voted_right (% of images whose ten nearest vote
        for their class), and for other outputs the points of both to the dense model,
        paired by image. Percentages and points have the ends of their 95 % interval.
    Raises InputError if dense outputs or numbers are not finite.
    """
    is_single = dense_outputs.shape[1] == 1  # which has no direction
    is_number = not has_classes and (has_classes is None or is_single)
    needed_outputs = [outputs, dense_outputs] if is_number else dense_outputs
    if not np.isfinite(needed_outputs).all():
        raise InputError("the model's outputs are not finite for all images")
    own_rows = unit_rows(outputs)
    is_finite = own_rows.any(1)  # zeros stand for NaN
    dense_rows = unit_rows(dense_outputs)
    metrics: dict[str, Any] = {}
    if has_classes:
        is_same = outputs.argmax(1) == dense_outputs.argmax(1)
        if is_single:
            is_same = (outputs[:, 0] > 0) == (dense_outputs[:, 0] > 0)
        is_same &= is_finite
        metrics["first_class"] = statistics.estimate_accuracy(is_same)
    elif is_number:
        # At least 1e-30: numbers that are the same for all images deviate by 0.
        deviation = np.maximum(dense_outputs.std(axis=0), 1e-30)
        scaled_errors = np.float64(outputs - dense_outputs) / deviation
        error_percents = 100 * np.sqrt(np.mean(scaled_errors**2, axis=1))
        zeros = np.zeros_like(error_percents)  # `mean_share` would cut at 100 %
        metrics["difference"] = statistics.mean_difference(error_percents, zeros)
    else:
        cosines = np.sum(own_rows * dense_rows, axis=1)
        metrics["cosine_mean"] = float(cosines.mean())
        metrics["cosine_worst"] = float(cosines.min())
    if has_classes is None or is_single or len(dense_outputs) < MIN_COMPARED_IMAGES:
        return metrics
    own_nearest = nearest_images(own_rows, own_rows)
    dense_nearest = nearest_images(dense_rows, dense_rows)
    is_changed = not np.array_equal(outputs, dense_outputs)
    classes, text_vectors, image_of_text = annotations or Annotations()
    if text_vectors is not None and image_of_text is not None:
        own_recall = text_recall(own_rows, text_vectors, image_of_text)
        dense_recall = text_recall(dense_rows, text_vectors, image_of_text)
        metrics["recall"] = statistics.mean_share(own_recall)
        if is_changed:
            recall_points = statistics.mean_difference(own_recall, dense_recall)
            metrics["recall_points"] = recall_points
    if classes is not None:
        is_own_right = voted_classes(own_rows, own_nearest, classes) == classes
        is_own_right &= is_finite
        is_dense_right = voted_classes(dense_rows, dense_nearest, classes) == classes
        metrics["voted_right"] = statistics.estimate_accuracy(is_own_right)
        if is_changed:
            voted_points = statistics.paired_difference(is_own_right, is_dense_right)
            metrics["voted_points"] = voted_points
    kept_percent = 100 * count_shared(own_nearest, dense_nearest) / NUM_NEIGHBORS
    metrics["neighbors_kept"] = statistics.mean_share(kept_percent * is_finite)
    return metrics


def measure_fidelities(
    outputs_by_row: Mapping[str, np.ndarray],
    has_classes: bool | None,
    annotations: Annotations,
) -> dict[str, dict[str, Any]]:
    """Measure the fidelity of every row's outputs, and of shuffled dense outputs.

    outputs_by_row: the row "dense" has the dense model's outputs
    has_classes: as in `measure_fidelity`
    """
    dense_outputs = outputs_by_row["dense"]
    shuffled_row = {SHUFFLED_CONTROL: shuffle_outputs(dense_outputs)}
    return {
        name: measure_fidelity(outputs, dense_outputs, has_classes, annotations)
        for name, outputs in {**outputs_by_row, **shuffled_row}.items()
    }


def unit_rows(outputs: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    """Scale rows to length 1, in float64; a row with NaN or infinity becomes 0."""
    rows = np.asarray(outputs, np.float64)
    rows = np.where(np.isfinite(rows).all(1, keepdims=True), rows, 0)
    # At least 1e-30: a row of zeros stays.
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def nearest_images(
    queries: Float[np.ndarray, "images dim"],
    candidates: Float[np.ndarray, "images dim"],
) -> Int[np.ndarray, "images neighbors"]:
    """Find every query's NUM_NEIGHBORS nearest rows of `candidates`.

    queries, candidates: unit rows; rows i of both are one image, no neighbor of itself
    Returns rows of `candidates`, the nearest first.
    """
    neighbor_blocks = []
    for start in range(0, len(queries), IMAGES_PER_BLOCK):
        cosines = queries[start : start + IMAGES_PER_BLOCK] @ candidates.T
        np.fill_diagonal(cosines[:, start:], -np.inf)
        nearest_order = np.argsort(-cosines, axis=1, kind="stable")
        neighbor_blocks.append(nearest_order[:, :NUM_NEIGHBORS])
    return np.concatenate(neighbor_blocks)


def count_shared(
    own_nearest: Int[np.ndarray, "images neighbors"],
    other_nearest: Int[np.ndarray, "images neighbors"],
) -> Int[np.ndarray, " images"]:
    """Count common neighbors."""
    is_equal = own_nearest[:, :, None] == other_nearest[:, None, :]
    return is_equal.any(axis=2).sum(axis=1)


def text_recall(
    image_vectors: Float[np.ndarray, "images dim"],
    text_vectors: Float[np.ndarray, "texts dim"],
    image_of_text: Int[np.ndarray, " texts"],
) -> Float[np.ndarray, " described"]:
    """Recall of text to image, %, the mean over RECALL_RANKS, per described image.

    An image of several texts has their mean.

    image_vectors: unit vectors; zeros are never found
    image_of_text: index of every text's image
    """
    recalls = np.zeros(len(text_vectors))
    for start in range(0, len(text_vectors), IMAGES_PER_BLOCK):
        block = slice(start, start + IMAGES_PER_BLOCK)
        cosines = unit_rows(text_vectors[block]) @ image_vectors.T
        own_cosine = np.take_along_axis(cosines, image_of_text[block, None], axis=1)
        # Images as similar as the text's own are ahead.
        num_ahead = np.count_nonzero(cosines >= own_cosine, axis=1) - 1
        recalls[block] = np.mean(num_ahead[:, None] < RECALL_RANKS, axis=1)
    is_zero = np.count_nonzero(image_vectors, axis=1) == 0
    recalls[is_zero[image_of_text]] = 0
    _, described_index = np.unique(image_of_text, return_inverse=True)
    return 100 * np.bincount(described_index, recalls) / np.bincount(described_index)


def voted_classes(
    unit_vectors: Float[np.ndarray, "images dim"],
    neighbors: Int[np.ndarray, "images neighbors"],
    classes: Shaped[np.ndarray, " images"],
) -> Shaped[np.ndarray, " images"]:
    """Find the class with most votes of the nearest images, which vote by cosine.

    neighbors: from `nearest_images`
    """
    class_names, class_of_image = np.unique(classes, return_inverse=True)
    votes = np.zeros((len(unit_vectors), len(class_names)))
    has_votes = np.zeros(votes.shape, bool)
    image_indices = np.arange(len(unit_vectors))
    for neighbor in neighbors.T:
        voted_class = class_of_image[neighbor]
        votes[image_indices, voted_class] += np.sum(
            unit_vectors * unit_vectors[neighbor], axis=1
        )
        has_votes[image_indices, voted_class] = True
    votes[~has_votes] = -np.inf  # cosines may be negative
    return class_names[votes.argmax(axis=1)]


def shuffle_outputs(
    outputs: Float[np.ndarray, "images dim"],
) -> Float[np.ndarray, "images dim"]:
    """Outputs in another order, so that an image has a random image's."""
    return np.random.default_rng(0).permutation(outputs)


def fidelity_cells(metrics: Mapping[str, Any]) -> dict[str, str]:
    """A table row's cells by column; `metrics` are from `measure_fidelity`."""
    cells = {}
    for name, metric in metrics.items():
        if isinstance(metric, float):
            cell = f"{metric:.4f}"
        else:
            estimate = statistics.Estimate(*metric)
            is_change = name.endswith("points")
            cell = statistics.format_estimate(estimate, signs=is_change)
        cells[FIDELITY_COLUMNS[name]] = cell
    return cells


def compress_images(
    pixels: UInt8[np.ndarray, "images height width 3"],
) -> UInt8[np.ndarray, "images height width 3"]:
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
