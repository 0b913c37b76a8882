"""Copies: images that show one picture, by a distance of small gray forms.

A copy is the same file under another name, or another encoding or size of the picture,
mirrored or not. Another crop is not a copy. `NEAR` was chosen on 500 photographs
(NIPS 2017, 224 pixels, even rows), and judged on the 500 others:

- saved again as JPEG of quality 20 to 90, as WebP of 50, with 256 colors, in gray; or
  resized by factors of .25 to 2, aspect not kept: 500 of 500 are found; JPEG of quality
  10: 496; half the size without antialiasing: 499
- their 124,750 pairs: none is taken for copies, the nearest one is at .38. Of the
  499,500 pairs of all 1,000 the nearest is at .31, of 89,692,921 pairs of imagenette at
  .20. Of 1,613,706 pairs of the handwritten digits one is nearer than .1
"""

import concurrent.futures
import logging

import numpy as np
from PIL import Image

from imagepiece_jax.common.machine import cores
from imagepiece_jax.common.progress import counted
from imagepiece_jax.data.decode import UnreadableImage
from imagepiece_jax.data.source import Source

SIDE = 16  # of a form
NEAR = 0.1  # copies are nearer than this
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


def originals(forms: np.ndarray) -> np.ndarray:
    """For each image the index of its original, which may be itself. [n, 256] -> [n]

    No two originals are nearer than NEAR.
    """
    found = np.arange(len(forms))
    for start in range(0, len(forms), ROWS):
        rows = forms[start : start + ROWS]
        near = distances(rows, forms[: start + len(rows)]) < NEAR
        near = np.tril(near, start - 1)  # each row with those before it
        for row in np.flatnonzero(near.any(1)):
            before = np.flatnonzero(near[row])
            before = before[found[before] == before]
            if before.size:
                found[start + row] = before[0]
    return found


def readable_originals(source: Source) -> Source:
    """The readable images of a source, each picture once.

    It reads all images, and logs which ones are left out.
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
    first = originals(np.reshape(forms, (-1, SIDE**2)))
    indices = np.array(indices, int)
    is_copy = first != np.arange(len(first))
    if is_copy.any():
        copy = np.flatnonzero(is_copy)[0]
        log.warning(
            "%s of %s images are copies of others and left out, such as %s of %s",
            f"{is_copy.sum():,}",
            f"{total:,}",
            source.name(indices[copy]),
            source.name(indices[first[copy]]),
        )
    indices = indices[~is_copy]
    return source if len(indices) == total else source.subset(indices)


def _in_threads(call, items, what):
    """Yield (item, call(item)) in order; `what` names the work in progress lines."""
    pool = concurrent.futures.ThreadPoolExecutor(cores())
    try:
        found = pool.map(call, items)
        for item in counted(items, what):
            yield item, next(found)
    finally:
        pool.shutdown(cancel_futures=True)
