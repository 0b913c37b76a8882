"""Scenes: groups of images that show one scene, by distances of gray thumbnails.

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

THUMBNAIL_SIDE = 16  # pixels a side
# Copies have a smaller distance. Chosen on 500 photographs (NIPS 2017, 224 pixels, even
# rows), judged on the other 500:
# - Copies found: 500 of 500 as JPEG of quality 20 to 90, as WebP of quality 50, with
#   256 colors, in gray, and resized by factors of 0.25 to 2, aspect not kept; 496 as
#   JPEG of quality 10; 499 at half the size without antialiasing.
# - Their 124,750 pairs: none counts as copies, the nearest is at 0.38. The nearest of
#   the 499,500 pairs of all 1,000 is at 0.31, of 89,692,921 pairs of imagenette at
#   0.20. Of 1,613,706 pairs of handwritten digits one is nearer than 0.1.
COPY_DISTANCE = 0.1
LARGEST_SHIFT = 3  # largest shift between parts of a scene, in pixels of a thumbnail
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
# Least deviation of a thumbnail, in gray levels: else images of nearly one color would
# differ by JPEG noise.
LEAST_DEVIATION = 8.0
CHUNK_SIZE = 500  # thumbnails or pairs to compare at once, limited by memory
DIGEST_DIGITS = 8  # hex digits of an image's digest; 1 pair in 4 billion shares it

Thumbnails = Float[np.ndarray, "images 256"]  # 16 x 16 gray means, row by row
Pairs = Int[np.ndarray, "_ 2"]

log = logging.getLogger("imagepiece_jax.data")


def make_thumbnail(image: Image.Image) -> Float[np.ndarray, " 256"]:
    """16 x 16 gray means of an image, with mean 0 and deviation 1."""
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    small = image.convert("L").resize(size, Image.Resampling.BILINEAR)
    gray = np.asarray(small, np.float32).ravel()
    gray -= gray.mean()
    return gray / max(float(gray.std()), LEAST_DEVIATION)


def thumbnail_distances(
    row_thumbnails: Float[np.ndarray, "rows 256"],
    column_thumbnails: Float[np.ndarray, "columns 256"],
) -> Float[np.ndarray, "rows columns"]:
    """Root-mean-square distances of thumbnails."""
    # Small distances are differences of large numbers; float32 would round them away.
    row_thumbnails = np.asarray(row_thumbnails, np.float64)
    column_thumbnails = np.asarray(column_thumbnails, np.float64)
    column_images = column_thumbnails.reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    mirrored_thumbnails = np.flip(column_images, 2).reshape(column_thumbnails.shape)
    # A mirrored thumbnail counts if it is nearer.
    products = row_thumbnails @ column_thumbnails.T
    products = np.maximum(products, row_thumbnails @ mirrored_thumbnails.T)
    row_squares = np.square(row_thumbnails).sum(1)[:, None]
    squared_distances = row_squares + np.square(column_thumbnails).sum(1) - 2 * products
    return np.sqrt(np.maximum(squared_distances, 0) / THUMBNAIL_SIDE**2)


def thumbnail_likeness(
    thumbnails: Thumbnails, other_thumbnails: Thumbnails
) -> Float[np.ndarray, " images"]:
    """Likeness of thumbnails in pairs, 1 for equal thumbnails."""
    gray_images = np.reshape(thumbnails, (-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    other_images = np.reshape(other_thumbnails, (-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    # The highest correlation of overlapping parts, over shifts of up to LARGEST_SHIFT.
    likeness = np.full(len(thumbnails), -1.0)
    shifts = range(-LARGEST_SHIFT, LARGEST_SHIFT + 1)
    for down, right in itertools.product(shifts, shifts):
        overlap = _shifted_overlap(gray_images, down, right)
        other_overlap = _shifted_overlap(other_images, -down, -right)
        norms = np.sqrt(np.sum(overlap**2, 1) * np.sum(other_overlap**2, 1))
        # Parts of nearly one color are no evidence.
        norms = np.maximum(norms, overlap.shape[1] / 4)
        likeness = np.maximum(likeness, np.sum(overlap * other_overlap, 1) / norms)
    return likeness


def _shifted_overlap(
    gray_images: Float[np.ndarray, "images 16 16"], down: int, right: int
) -> Float[np.ndarray, "images pixels"]:
    """Images without the rows and columns a shift takes out, with mean 0."""
    rows = slice(max(0, down), THUMBNAIL_SIDE + min(0, down))
    columns = slice(max(0, right), THUMBNAIL_SIDE + min(0, right))
    overlap = gray_images[:, rows, columns].reshape(len(gray_images), -1)
    return overlap - overlap.mean(1, keepdims=True)


def number_scenes(thumbnails: Thumbnails) -> Int[np.ndarray, " images"]:
    """Scene number of every image.

    Copies and alike images share a scene, also by a chain of images between them.
    """
    num_images = len(thumbnails)
    # Neighbors in a list need less likeness than other pairs.
    linked_pairs = [np.zeros((0, 2), int)]
    for offset in range(1, 1 + NEIGHBOR_COUNT):
        later_indices = np.arange(offset, num_images)
        neighbor_pairs = np.stack([later_indices, later_indices - offset], 1)
        alike_pairs = _select_alike_pairs(thumbnails, neighbor_pairs, NEIGHBOR_LIKENESS)
        linked_pairs.append(alike_pairs)
    for start in range(0, num_images, CHUNK_SIZE):
        chunk_indices = np.arange(start, min(start + CHUNK_SIZE, num_images))
        distances = thumbnail_distances(thumbnails[chunk_indices], thumbnails)
        distances[np.arange(len(chunk_indices)), chunk_indices] = np.inf
        num_nearest = min(NEAREST_COUNT, num_images - 1)
        nearest_first = np.argpartition(distances, num_nearest, axis=1)
        nearest_indices = nearest_first[:, :num_nearest].ravel()
        pairs = np.stack([np.repeat(chunk_indices, num_nearest), nearest_indices], 1)
        is_copy = distances[pairs[:, 0] - start, pairs[:, 1]] < COPY_DISTANCE
        linked_pairs.append(pairs[is_copy])
        alike_pairs = _select_alike_pairs(thumbnails, pairs[~is_copy], SCENE_LIKENESS)
        linked_pairs.append(alike_pairs)
    rows, columns = np.concatenate(linked_pairs).T
    edges = (np.ones(len(rows)), (rows, columns))
    graph = sparse.coo_matrix(edges, (num_images, num_images))
    return csgraph.connected_components(graph, directed=False)[1]


def _select_alike_pairs(
    thumbnails: Thumbnails, pairs: Pairs, likeness_bound: float
) -> Pairs:
    """Pairs with a likeness above `likeness_bound`."""
    alike_pairs = [np.zeros((0, 2), int)]
    for start in range(0, len(pairs), CHUNK_SIZE):
        chunk_pairs = pairs[start : start + CHUNK_SIZE]
        first_thumbnails, second_thumbnails = thumbnails[chunk_pairs.T]
        likeness = thumbnail_likeness(first_thumbnails, second_thumbnails)
        alike_pairs.append(chunk_pairs[likeness > likeness_bound])
    return np.concatenate(alike_pairs)


def read_scenes(
    source: Source,
) -> tuple[Source, Int[np.ndarray, " images"], list[str]]:
    """(readable images, their scene numbers, their digests), with errors logged."""
    num_images = len(source)

    def read_thumbnail(index: int) -> tuple[np.ndarray, str] | UnreadableImage | None:
        image = source[index]
        if image.pixels is None:
            return image.damage
        digest = hashlib.blake2b(image.pixels.tobytes(), digest_size=DIGEST_DIGITS // 2)
        return make_thumbnail(Image.fromarray(image.pixels)), digest.hexdigest()

    thumbnails = []
    digests = []
    readable_indices = []
    task = "looking through the images"
    for index, result in _map_in_threads(read_thumbnail, range(num_images), task):
        if isinstance(result, tuple):
            thumbnails.append(result[0])
            digests.append(result[1])
            readable_indices.append(index)
        else:
            log.warning("%s: it is left out", result)
    scene_numbers = number_scenes(np.reshape(thumbnails, (-1, THUMBNAIL_SIDE**2)))
    if len(readable_indices) < num_images:
        source = source.subset(readable_indices)
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
