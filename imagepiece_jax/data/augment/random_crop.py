"""Transforms of one training image on the host: random crops and flips.

The functions take a uint8 RGB array [H, W, 3] and a NumPy Generator; `TrainTransform`
calls them one after the other. Each draws a fixed number of random numbers for any
image, so the functions after it always get the same ones. Evaluation's crop is
`preprocessing.Preprocessing`.

Resizing is bicubic with antialiasing. `resize_fast` takes a quarter of the time of
Pillow, which evaluation uses, and differs from it by about half a level of 256.
"""

import dataclasses
import functools
import math

import numpy as np

from imagepiece_jax.common.image_size import sides
from imagepiece_jax.data.preprocessing import resize_exactly, unresized

try:
    import cv2
except ModuleNotFoundError:  # of the extra "train"; `recover` does without
    cv2 = None
else:
    # Workers are parallel over images; OpenCV's own threads would get in their way.
    cv2.setNumThreads(0)

TRIES = 10  # random boxes to try
CROPS = ("random_resized", "shift", "none")
_OPENCV = -0.75  # the parameter `a` of its cubic kernel
_PILLOW = -0.5  # the same of Pillow's


def crop_box(height, width, rng, area, aspect=(3 / 4, 4 / 3)):
    """A random box inside an image of height x width pixels.

    If TRIES random boxes do not fit, it is the largest centered one within `aspect`.

    area: bounds of its share of the image's area; the share is drawn uniformly
    aspect: bounds of its width / height; the logarithm is drawn uniformly
    Returns (top, left, box height, box width).
    Source: the Inception crop as DeiT uses it.
    """
    low, high = (math.log(ratio) for ratio in aspect)
    for share, ratio, down, right in rng.random((TRIES, 4)):
        pixels = height * width * (area[0] + share * (area[1] - area[0]))
        ratio = math.exp(low + ratio * (high - low))
        box_width = round(math.sqrt(pixels * ratio))
        box_height = round(math.sqrt(pixels / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(down * (height - box_height + 1))
            left = int(right * (width - box_width + 1))
            return top, left, box_height, box_width
    ratio = min(max(width / height, aspect[0]), aspect[1])
    box_width = min(width, round(height * ratio))
    box_height = min(height, round(width / ratio))
    top = (height - box_height) // 2
    left = (width - box_width) // 2
    return top, left, box_height, box_width


def random_resized_crop(image, size, rng, area, aspect=(3 / 4, 4 / 3)):
    """Resize a `crop_box` of the image to a size.

    size: pixels a side, or (height, width); its aspect multiplies the box's
    Returns [height, width, 3].
    """
    height, width = sides(size)
    aspect = tuple(ratio * (width / height) for ratio in aspect)
    top, left, *box = crop_box(*image.shape[:2], rng, area, aspect)
    inside = image[top : top + box[0], left : left + box[1]]
    return resize_fast(inside, height, width)


def shift(image, rng, pixels):
    """Move the image by up to `pixels` in each direction; fill with zeros.

    The shape does not change. DeiT does the same with small images.
    """
    height, width = image.shape[:2]
    top, left = rng.integers(0, 2 * pixels + 1, size=2)
    padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
    return padded[top : top + height, left : left + width]


def flip(image, rng):
    """Mirror the image left to right, with a probability of 1/2."""
    if rng.random() >= 0.5:
        return image
    if cv2 is None:
        return image[:, ::-1]
    return cv2.flip(image, 1)  # 9 us for 224 x 224; NumPy's view takes 800 to copy


def resize_fast(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize almost as `resize_exactly`, but faster. uint8 [H, W, 3].

    OpenCV's bicubic kernel differs from Pillow's and does not widen when images shrink,
    so fine texture becomes noise. A short filter before it corrects both. Images of
    more than twice the size are first averaged down by a whole factor. Without OpenCV
    this is `resize_exactly`.

    Returns [height, width, 3].
    """
    old = image.shape[:2]
    if old == (height, width):
        return image
    if cv2 is None:
        return resize_exactly(image, height, width)
    rows = old[0] // _factor(old[0], height)
    columns = old[1] // _factor(old[1], width)
    if (rows, columns) != old:
        image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    across = _filter(columns, width)
    down = _filter(rows, height)
    image = cv2.sepFilter2D(image, -1, across, down, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def _factor(old, new):
    """The whole factor to average by; at least twice the new size is left."""
    return max(1, old // (2 * new))


def _filter(old, new):
    """The filter before OpenCV's resize from `old` to `new` pixels."""
    if old == new:
        return np.ones(1, np.float32)
    # Rounded, so that a few hundred filters serve all crops.
    return _filter_by_scale(round(old / new, 2))


@functools.lru_cache(maxsize=1024)
def _filter_by_scale(scale):
    """The filter before OpenCV's bicubic resize, float32 [2n + 1].

    By least squares, the filter followed by OpenCV's kernel equals Pillow's kernel,
    which is `scale` times as wide when images shrink.

    scale: old size / new size
    """
    wide = max(scale, 1.0)
    count = math.ceil(2 * wide)
    x = np.linspace(0, 2 * wide + 2, 50 * count)  # both sides are even functions
    wanted = _cubic(x / wide, _PILLOW) / wide
    kernels = [_cubic(x, _OPENCV)]
    for k in range(1, count + 1):
        kernels.append(_cubic(x - k, _OPENCV) + _cubic(x + k, _OPENCV))
    half, *_ = np.linalg.lstsq(np.stack(kernels, axis=1), wanted)
    weights = np.concatenate([half[:0:-1], half])
    return (weights / weights.sum()).astype(np.float32)


def _cubic(x, a):
    """Keys' cubic kernel: 1 at 0, 0 at other whole numbers and beyond 2."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    beyond = np.where(x < 2, far, 0)
    return np.where(x < 1, near, beyond)


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Random crop and flip: a function (image, rng) -> [H, W, 3] uint8."""

    image_size: int | tuple[int, int]  # pixels a side, or (height, width)
    crop: str  # "random_resized"; "shift" or "none" for images of this size
    area: tuple[float, float]  # bounds of a random crop's share of the image's area
    shift: int  # the most pixels by which images are shifted
    flip: bool  # whether images are flipped at random

    @property
    def shape(self):
        return sides(self.image_size)

    def __call__(self, image, rng):
        if self.crop == "random_resized":
            image = random_resized_crop(image, self.image_size, rng, self.area)
        else:
            image = unresized(image, self.image_size)
            if self.crop == "shift":
                image = shift(image, rng, self.shift)
        if self.flip:
            image = flip(image, rng)
        return image
