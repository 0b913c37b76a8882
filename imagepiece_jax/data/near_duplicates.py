"""Scenes: groups of images that show one scene, by distances of small gray forms.

A scene has copies of a picture (renamed, re-encoded, resized or mirrored) and frames
(shifted, zoomed, or in other light).
"""

import concurrent.futures
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from scipy import sparse
from scipy.sparse import csgraph

from imagepiece_jax.common.machine import available_cores
from imagepiece_jax.common.progress import with_progress_bar
from imagepiece_jax.data.decode import UnreadableImage
from imagepiece_jax.data.source import Source

FORM_SIDE = 16  # pixels a side of a form
# Copies have a smaller distance. Chosen on 500 photographs (NIPS 2017, 224 pixels, even
# rows), judged on the other 500:
# - Copies found: 500 of 500 as JPEG of quality 20 to 90, as WebP of quality 50, with
#   256 colors, in gray, and resized by factors of 0.25 to 2, aspect not kept; 496 as
#   JPEG of quality 10; 499 at half the size without antialiasing.
# - Their 124,750 pairs: none counts as copies, the nearest is at 0.38. The nearest of
#   the 499,500 pairs of all 1,000 is at 0.31, of 89,692,921 pairs of imagenette at
#   0.20. Of 1,613,706 pairs of handwritten digits one is nearer than 0.1.
COPY_DISTANCE = 0.1
LARGEST_SHIFT = 3  # largest shift between parts of a scene, in form pixels
# Images of one scene are more alike: frames are shifted, zoomed, and in other light.
# Both thresholds were chosen and judged on the same halves:
# - 200 scenes of 8 frames (crops of 0.8 to 0.92 of a side, 10 % lighter or darker): in
#   order, 2 scenes have more than one number; shuffled, 69.
# - 500 unrelated photographs: 20 share a scene with another photograph, 3 at most.
# - imagenette's 3,925 test images, sorted by class: 3.8 % share a scene, 73 at most.
# - Handwritten digits are alike: 1,260 of 1,438 are one scene.
SCENE_LIKENESS = 0.93
NEIGHBOR_LIKENESS = 0.8  # for neighbors in a list
NEIGHBOR_COUNT = 3  # preceding images that count as neighbors
NEAREST_COUNT = 8  # images to compare with an image, besides its neighbors
# Least deviation of a form, in gray levels: else images of nearly one color would
# differ by JPEG noise.
LEAST_DEVIATION = 8.0
CHUNK_FORMS = 500  # forms to compare with all forms at once, limited by memory
DIGEST_DIGITS = 8  # hex digits of an image's digest; 1 pair in 4 billion shares it

GrayForms = Float[np.ndarray, "images 256"]  # 16 x 16 gray means, row by row
Pairs = Int[np.ndarray, "_ 2"]

log = logging.getLogger("imagepiece_jax.data")


def small_form(image: Image.Image) -> Float[np.ndarray, " 256"]:
    """16 x 16 gray means of an image, with mean 0 and deviation 1."""
    size = (FORM_SIDE, FORM_SIDE)
    small = image.convert("L").resize(size, Image.Resampling.BILINEAR)
    gray = np.asarray(small, np.float32).ravel()
    gray -= gray.mean()
    return gray / max(float(gray.std()), LEAST_DEVIATION)


def form_distances(
    forms: Float[np.ndarray, "rows 256"], others: Float[np.ndarray, "columns 256"]
) -> Float[np.ndarray, "rows columns"]:
    """Root-mean-square distances of forms."""
    # Small distances are differences of large numbers; float32 would round them away.
    forms = np.asarray(forms, np.float64)
    others = np.asarray(others, np.float64)
    mirrored = others.reshape(-1, FORM_SIDE, FORM_SIDE)[:, :, ::-1].reshape(
        others.shape
    )
    # A mirrored form counts if it is nearer.
    products = np.maximum(forms @ others.T, forms @ mirrored.T)
    squares = np.square(forms).sum(1)[:, None] + np.square(others).sum(1)
    return np.sqrt(np.maximum(squares - 2 * products, 0) / FORM_SIDE**2)


def form_likeness(forms: GrayForms, others: GrayForms) -> Float[np.ndarray, " images"]:
    """Likeness of forms in pairs, 1 for equal forms."""
    squares = np.reshape(forms, (-1, FORM_SIDE, FORM_SIDE))
    other_squares = np.reshape(others, (-1, FORM_SIDE, FORM_SIDE))
    # The highest correlation of overlapping parts, over shifts of up to LARGEST_SHIFT.
    highest = np.full(len(forms), -1.0)
    shifts = range(-LARGEST_SHIFT, LARGEST_SHIFT + 1)
    for down, right in itertools.product(shifts, shifts):
        overlap = _shifted_overlap(squares, down, right)
        other_overlap = _shifted_overlap(other_squares, -down, -right)
        norms = np.sqrt(np.sum(overlap**2, 1) * np.sum(other_overlap**2, 1))
        # Parts of nearly one color are no evidence.
        norms = np.maximum(norms, overlap.shape[1] / 4)
        highest = np.maximum(highest, np.sum(overlap * other_overlap, 1) / norms)
    return highest


def _shifted_overlap(
    squares: Float[np.ndarray, "images 16 16"], down: int, right: int
) -> Float[np.ndarray, "images pixels"]:
    """Forms without the rows and columns a shift takes out, with mean 0."""
    rows = slice(max(0, down), FORM_SIDE + min(0, down))
    columns = slice(max(0, right), FORM_SIDE + min(0, right))
    overlap = squares[:, rows, columns].reshape(len(squares), -1)
    return overlap - overlap.mean(1, keepdims=True)


def number_scenes(forms: GrayForms) -> Int[np.ndarray, " images"]:
    """Scene number of every image.

    Copies and alike images share a scene, also by a chain of images between them.
    """
    num_images = len(forms)
    # Neighbors in a list need less likeness than other pairs.
    pairs = [np.zeros((0, 2), int)]
    for distance in range(1, 1 + NEIGHBOR_COUNT):
        later = np.arange(distance, num_images)
        neighbors = np.stack([later, later - distance], 1)
        pairs.append(_alike_pairs(forms, neighbors, NEIGHBOR_LIKENESS))
    for start in range(0, num_images, CHUNK_FORMS):
        rows = np.arange(start, min(start + CHUNK_FORMS, num_images))
        distances = form_distances(forms[rows], forms)
        distances[np.arange(len(rows)), rows] = np.inf
        num_nearest = min(NEAREST_COUNT, num_images - 1)
        nearest = np.argpartition(distances, num_nearest, axis=1)[:, :num_nearest]
        candidates = np.stack([np.repeat(rows, num_nearest), nearest.ravel()], 1)
        is_copy = distances[candidates[:, 0] - start, candidates[:, 1]] < COPY_DISTANCE
        pairs.append(candidates[is_copy])
        pairs.append(_alike_pairs(forms, candidates[~is_copy], SCENE_LIKENESS))
    first, second = np.concatenate(pairs).T
    edges = (np.ones(len(first)), (first, second))
    graph = sparse.coo_matrix(edges, (num_images, num_images))
    return csgraph.connected_components(graph, directed=False)[1]


def _alike_pairs(forms: GrayForms, pairs: Pairs, least_likeness: float) -> Pairs:
    """Pairs with a likeness above `least_likeness`."""
    alike_pairs = [np.zeros((0, 2), int)]
    for start in range(0, len(pairs), CHUNK_FORMS):
        chunk = pairs[start : start + CHUNK_FORMS]
        likeness = form_likeness(forms[chunk[:, 0]], forms[chunk[:, 1]])
        alike_pairs.append(chunk[likeness > least_likeness])
    return np.concatenate(alike_pairs)


def readable_scenes(
    source: Source,
) -> tuple[Source, Int[np.ndarray, " images"], list[str]]:
    """(readable images, their scene numbers, their digests), with errors logged."""
    num_images = len(source)

    def form_and_digest(index: int) -> tuple[np.ndarray, str] | UnreadableImage | None:
        image = source[index]
        if image.pixels is None:
            return image.damage
        digest = hashlib.blake2b(image.pixels.tobytes(), digest_size=DIGEST_DIGITS // 2)
        return small_form(Image.fromarray(image.pixels)), digest.hexdigest()

    forms = []
    digests = []
    indices = []
    task = "looking through the images"
    for index, result in _map_in_threads(form_and_digest, range(num_images), task):
        if isinstance(result, tuple):
            forms.append(result[0])
            digests.append(result[1])
            indices.append(index)
        else:
            log.warning("%s: it is left out", result)
    scene_numbers = number_scenes(np.reshape(forms, (-1, FORM_SIDE**2)))
    if len(indices) < num_images:
        source = source.subset(indices)
    return source, scene_numbers, digests


def _map_in_threads(
    function: Callable[[Any], Any], items: Sequence[Any], task: str
) -> Iterator[tuple[Any, Any]]:
    """Yield (item, function(item)) in order; `task` names the work in the log."""
    pool = concurrent.futures.ThreadPoolExecutor(available_cores())
    try:
        results = pool.map(function, items)
        for item in with_progress_bar(items, task):
            yield item, next(results)
    finally:
        pool.shutdown(cancel_futures=True)
