"""Scenes: groups of images that show one scene, by distances of small gray forms.

A copy is the same file under another name, or another encoding or size of the picture,
mirrored or not. `NEAR` was chosen on 500 photographs (NIPS 2017, 224 pixels, even
rows), and judged on the 500 others:

- saved again as JPEG of quality 20 to 90, as WebP of 50, with 256 colors, in gray; or
  resized by factors of .25 to 2, aspect not kept: 500 of 500 are found; JPEG of quality
  10: 496; half the size without antialiasing: 499
- their 124,750 pairs: none is taken for copies, the nearest one is at .38. Of the
  499,500 pairs of all 1,000 the nearest is at .31, of 89,692,921 pairs of imagenette at
  .20. Of 1,613,706 pairs of the handwritten digits one is nearer than .1

Frames of a scene are shifted, zoomed, and in other light. Their thresholds were chosen
and judged on the same halves:

- 200 scenes of 8 frames, parts of .8 to .92 of a side, 10 % lighter or darker: in order
  2 scenes have more than one number, shuffled 69
- 500 unrelated photographs: 20 share a scene with another, 3 at most; of imagenette's
  3,925 test images, sorted by class, 3.8 %, 73 at most
- handwritten digits are alike: 1,260 of 1,438 are one scene
"""

import concurrent.futures
import itertools
import logging

import numpy as np
from PIL import Image
from scipy import sparse
from scipy.sparse import csgraph

from imagepiece_jax.common.machine import cores
from imagepiece_jax.common.progress import counted
from imagepiece_jax.data.decode import UnreadableImage
from imagepiece_jax.data.source import Source

SIDE = 16  # of a form
NEAR = 0.1  # copies are nearer than this
SHIFT = 3  # pixels of a form by which parts of a scene are shifted, at most
LIKENESS = 0.93  # images of one scene are more alike than this
NEIGHBOR_LIKENESS = 0.8  # the same, of images that are neighbors in a list
NEIGHBORS = 3  # images before each one that are its neighbors
NEAREST = 8  # images that each one is compared with, besides its neighbors
# The least deviation of a form, in gray levels: images of nearly one color would differ
# by the noise that JPEG adds.
LEAST_DEVIATION = 8.0
ROWS = 500  # forms that are compared with all others at once, for the memory

log = logging.getLogger("imagepiece_jax.data")


def small_form(image: Image.Image) -> np.ndarray:
    """The form of an image: 16 x 16 gray means, of mean 0 and deviation 1. [256]"""
    size = (SIDE, SIDE)
    small = image.convert("L").resize(size, Image.Resampling.BILINEAR)
    gray = np.asarray(small, np.float32).ravel()
    gray -= gray.mean()
    return gray / max(float(gray.std()), LEAST_DEVIATION)


def distances(forms: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distances of forms to others, or to their mirror images if these are nearer.

    A distance is the root mean square of the difference. [n, 256], [m, 256] -> [n, m]
    """
    # Small distances are differences of large numbers; float32 would round them away.
    forms = np.asarray(forms, np.float64)
    others = np.asarray(others, np.float64)
    mirrored = others.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(others.shape)
    products = np.maximum(forms @ others.T, forms @ mirrored.T)
    squares = np.square(forms).sum(1)[:, None] + np.square(others).sum(1)
    return np.sqrt(np.maximum(squares - 2 * products, 0) / SIDE**2)


def likeness(forms: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How alike forms are, each to one other, where they show a part of one scene.

    It is the highest correlation of the parts that overlap, of all shifts by up to
    SHIFT pixels: 1 for equal ones. [n, 256] twice -> [n]
    """
    forms = np.reshape(forms, (-1, SIDE, SIDE))
    others = np.reshape(others, (-1, SIDE, SIDE))
    highest = np.full(len(forms), -1.0)
    shifts = range(-SHIFT, SHIFT + 1)
    for down, right in itertools.product(shifts, shifts):
        ours = _part(forms, down, right)
        theirs = _part(others, -down, -right)
        size = np.sqrt(np.sum(ours**2, 1) * np.sum(theirs**2, 1))
        # Parts of nearly one color are no evidence.
        size = np.maximum(size, ours.shape[1] / 4)
        highest = np.maximum(highest, np.sum(ours * theirs, 1) / size)
    return highest


def _part(forms, down, right):
    """Forms without the rows and columns that a shift takes out, of mean 0. [n, m]"""
    rows = slice(max(0, down), SIDE + min(0, down))
    columns = slice(max(0, right), SIDE + min(0, right))
    part = forms[:, rows, columns].reshape(len(forms), -1)
    return part - part.mean(1, keepdims=True)


def scenes(forms: np.ndarray) -> np.ndarray:
    """The number of the scene that each image shows. [n, 256] -> [n]

    Two images show one scene if they are copies, if they are alike, or if there is a
    chain of such images between them.
    """
    total = len(forms)
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


def _alike(forms, ones, others, least):
    """The pairs (one, other) of some that are more alike than `least`. [pairs, 2]"""
    found = [np.zeros((0, 2), int)]
    for start in range(0, len(ones), ROWS):
        pairs = np.stack([ones[start : start + ROWS], others[start : start + ROWS]], 1)
        alike = likeness(forms[pairs[:, 0]], forms[pairs[:, 1]]) > least
        found.append(pairs[alike])
    return np.concatenate(found)


def readable_scenes(source: Source) -> tuple[Source, np.ndarray]:
    """The readable images of a source, and the number of each one's scene.

    It reads all images, and logs which ones cannot be read.
    """
    total = len(source)

    def form_or_error(index):
        image = source[index]
        if not image.readable:
            return image.damage
        return small_form(Image.fromarray(image.pixels))

    forms = []
    indices = []
    what = "looking through the images"
    for index, form in _in_threads(form_or_error, range(total), what):
        if isinstance(form, UnreadableImage):
            log.warning("%s: it is left out", form)
        else:
            forms.append(form)
            indices.append(index)
    found = scenes(np.reshape(forms, (-1, SIDE**2)))
    return (source if len(indices) == total else source.subset(indices)), found


def _in_threads(call, items, what):
    """Yield (item, call(item)) in order; `what` names the work in progress lines."""
    pool = concurrent.futures.ThreadPoolExecutor(cores())
    try:
        found = pool.map(call, items)
        for item in counted(items, what):
            yield item, next(found)
    finally:
        pool.shutdown(cancel_futures=True)
