"""Scenes: groups of images that show one scene, by distances of small gray forms.

A scene has copies of a picture (renamed, re-encoded, resized or mirrored) and frames
(shifted, zoomed, or in other light).
"""

import concurrent.futures
import hashlib
import itertools
import logging

import numpy as np
from PIL import Image
from scipy import sparse
from scipy.sparse import csgraph

from imagepiece_jax.common.machine import available_cores
from imagepiece_jax.common.progress import with_progress_bar
from imagepiece_jax.data.decode import UnreadableImage
from imagepiece_jax.data.source import Source

SIDE = 16  # pixels a side of a form
# Copies have a smaller distance. Chosen on 500 photographs (NIPS 2017, 224 pixels, even
# rows), judged on the other 500:
# - Copies found: 500 of 500 as JPEG of quality 20 to 90, as WebP of quality 50, with
#   256 colors, in gray, and resized by factors of 0.25 to 2, aspect not kept; 496 as
#   JPEG of quality 10; 499 at half the size without antialiasing.
# - Their 124,750 pairs: none counts as copies, the nearest is at 0.38. The nearest of
#   the 499,500 pairs of all 1,000 is at 0.31, of 89,692,921 pairs of imagenette at
#   0.20. Of 1,613,706 pairs of handwritten digits one is nearer than 0.1.
NEAR = 0.1
SHIFT = 3  # largest shift between parts of a scene, in form pixels
# Images of one scene are more alike: frames are shifted, zoomed, and in other light.
# Both thresholds were chosen and judged on the same halves:
# - 200 scenes of 8 frames (crops of 0.8 to 0.92 of a side, 10 % lighter or darker): in
#   order, 2 scenes have more than one number; shuffled, 69.
# - 500 unrelated photographs: 20 share a scene with another photograph, 3 at most.
# - imagenette's 3,925 test images, sorted by class: 3.8 % share a scene, 73 at most.
# - Handwritten digits are alike: 1,260 of 1,438 are one scene.
LIKENESS = 0.93
NEIGHBOR_LIKENESS = 0.8  # for neighbors in a list
NEIGHBORS = 3  # preceding images that count as neighbors
NEAREST = 8  # images to compare with an image, besides its neighbors
# Least deviation of a form, in gray levels: else images of nearly one color would
# differ by JPEG noise.
LEAST_DEVIATION = 8.0
ROWS = 500  # forms to compare with all forms at once, limited by memory
DIGITS = 8  # hex digits of an image's digest; one pair in 4 billion shares a digest

log = logging.getLogger("imagepiece_jax.data")


def small_form(image: Image.Image) -> np.ndarray:
    """16 x 16 gray means of an image, with mean 0 and deviation 1. -> [256]."""
    size = (SIDE, SIDE)
    small = image.convert("L").resize(size, Image.Resampling.BILINEAR)
    gray = np.asarray(small, np.float32).ravel()
    gray -= gray.mean()
    return gray / max(float(gray.std()), LEAST_DEVIATION)


def distances(forms: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Root-mean-square distances of forms. [n, 256], [m, 256] -> [n, m]."""
    # Small distances are differences of large numbers; float32 would round them away.
    forms = np.asarray(forms, np.float64)
    others = np.asarray(others, np.float64)
    mirrored = others.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(others.shape)
    # A mirrored form counts if it is nearer.
    products = np.maximum(forms @ others.T, forms @ mirrored.T)
    squares = np.square(forms).sum(1)[:, None] + np.square(others).sum(1)
    return np.sqrt(np.maximum(squares - 2 * products, 0) / SIDE**2)


def likeness(forms: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Likeness of forms in pairs, 1 for equal forms. [n, 256] twice -> [n]."""
    forms = np.reshape(forms, (-1, SIDE, SIDE))
    others = np.reshape(others, (-1, SIDE, SIDE))
    # The highest correlation of overlapping parts, over shifts of up to SHIFT pixels.
    highest = np.full(len(forms), -1.0)
    shifts = range(-SHIFT, SHIFT + 1)
    for down, right in itertools.product(shifts, shifts):
        part = _part(forms, down, right)
        other_part = _part(others, -down, -right)
        size = np.sqrt(np.sum(part**2, 1) * np.sum(other_part**2, 1))
        # Parts of nearly one color are no evidence.
        size = np.maximum(size, part.shape[1] / 4)
        highest = np.maximum(highest, np.sum(part * other_part, 1) / size)
    return highest


def _part(forms, down, right):
    """Forms without the rows and columns a shift takes out, with mean 0. -> [n, m]."""
    rows = slice(max(0, down), SIDE + min(0, down))
    columns = slice(max(0, right), SIDE + min(0, right))
    part = forms[:, rows, columns].reshape(len(forms), -1)
    return part - part.mean(1, keepdims=True)


def scenes(forms: np.ndarray) -> np.ndarray:
    """Scene number of every image. [n, 256] -> [n].

    Copies and alike images share a scene, also by a chain of images between them.
    """
    total = len(forms)
    # Neighbors in a list need less likeness than other pairs.
    pairs = [np.zeros((0, 2), int)]
    for back in range(1, 1 + NEIGHBORS):
        later = np.arange(back, total)
        pairs.append(_alike(forms, later, later - back, NEIGHBOR_LIKENESS))
    for start in range(0, total, ROWS):
        rows = np.arange(start, min(start + ROWS, total))
        between = distances(forms[rows], forms)
        between[np.arange(len(rows)), rows] = np.inf
        count = min(NEAREST, total - 1)
        nearest = np.argpartition(between, count, axis=1)[:, :count]
        rows = np.repeat(rows, nearest.shape[1])
        nearest = nearest.ravel()
        is_copy = between[rows - start, nearest] < NEAR
        pairs.append(np.stack([rows, nearest], 1)[is_copy])
        pairs.append(_alike(forms, rows[~is_copy], nearest[~is_copy], LIKENESS))
    ones, others = np.concatenate(pairs).T
    graph = sparse.coo_matrix((np.ones(len(ones)), (ones, others)), (total, total))
    return csgraph.connected_components(graph, directed=False)[1]


def _alike(forms, rows, others, least):
    """Pairs (ones, others) with a likeness above `least`. -> [pairs, 2]."""
    alike_pairs = [np.zeros((0, 2), int)]
    for start in range(0, len(rows), ROWS):
        pairs = np.stack([rows[start : start + ROWS], others[start : start + ROWS]], 1)
        alike = likeness(forms[pairs[:, 0]], forms[pairs[:, 1]]) > least
        alike_pairs.append(pairs[alike])
    return np.concatenate(alike_pairs)


def readable_scenes(source: Source) -> tuple[Source, np.ndarray, list[str]]:
    """(readable images, their scene numbers, their digests), with errors logged."""
    total = len(source)

    def form_or_error(index):
        image = source[index]
        if not image.readable:
            return image.damage
        digest = hashlib.blake2b(image.pixels.tobytes(), digest_size=DIGITS // 2)
        return small_form(Image.fromarray(image.pixels)), digest.hexdigest()

    found = []
    indices = []
    task = "looking through the images"
    for index, result in _in_threads(form_or_error, range(total), task):
        if isinstance(result, UnreadableImage):
            log.warning("%s: it is left out", result)
        else:
            found.append(result)
            indices.append(index)
    forms = [form for form, _ in found]
    digests = [digest for _, digest in found]
    scene_numbers = scenes(np.reshape(forms, (-1, SIDE**2)))
    if len(indices) < total:
        source = source.subset(indices)
    return source, scene_numbers, digests


def _in_threads(call, items, task):
    """Yield (item, call(item)) in order; `task` names the work in progress lines."""
    pool = concurrent.futures.ThreadPoolExecutor(available_cores())
    try:
        results = pool.map(call, items)
        for item in with_progress_bar(items, task):
            yield item, next(results)
    finally:
        pool.shutdown(cancel_futures=True)
