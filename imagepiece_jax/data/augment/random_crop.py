"""Random crops and flips of one training image on the host: `TrainTransform`.

Functions take a uint8 RGB array [H, W, 3] and a NumPy Generator. Every function draws a
fixed count of random numbers, so later functions always get the same numbers.
"""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Float, Float32, UInt8

from imagepiece_jax.common.image_size import ImageSize, image_sides
from imagepiece_jax.data.preprocessing import (
    CroppedPixels,
    RgbPixels,
    check_unresized,
    resize_exactly,
)

try:
    import cv2
except ModuleNotFoundError:  # in the extra "train"; `recover` works without it
    cv2 = None
else:
    # Workers are parallel over images; OpenCV's own threads would compete with them.
    cv2.setNumThreads(0)

CROP_TRIES = 10  # random boxes to try
CROP_KINDS = ("random_resized", "shift", "none")
BOX_ASPECT = (3 / 4, 4 / 3)  # bounds of width / height, as in DeiT
Rng = np.random.Generator
Bounds = tuple[float, float]  # smallest and largest
_OPENCV_CUBIC = -0.75  # parameter `a` of OpenCV's cubic kernel
_PILLOW_CUBIC = -0.5  # parameter `a` of Pillow's cubic kernel


def draw_crop_box(
    height: int, width: int, rng: Rng, area: Bounds, aspect: Bounds = BOX_ASPECT
) -> tuple[int, int, int, int]:
    """Draw a box (top, left, height, width): the Inception crop as in DeiT.

    area: bounds of box area / image area, drawn uniformly
    aspect: bounds of width / height, whose logarithm is drawn uniformly
    """
    log_low, log_high = (math.log(bound) for bound in aspect)
    for area_draw, aspect_draw, top_draw, left_draw in rng.random((CROP_TRIES, 4)):
        box_area = height * width * (area[0] + area_draw * (area[1] - area[0]))
        box_aspect = math.exp(log_low + aspect_draw * (log_high - log_low))
        box_width = round(math.sqrt(box_area * box_aspect))
        box_height = round(math.sqrt(box_area / box_aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(top_draw * (height - box_height + 1))
            left = int(left_draw * (width - box_width + 1))
            return top, left, box_height, box_width
    # No random box fits: the largest centered box within `aspect`.
    box_aspect = min(max(width / height, aspect[0]), aspect[1])
    box_width = min(width, round(height * box_aspect))
    box_height = min(height, round(width / box_aspect))
    top = (height - box_height) // 2
    left = (width - box_width) // 2
    return top, left, box_height, box_width


def random_resized_crop(
    image: RgbPixels, image_size: ImageSize, rng: Rng, area: Bounds
) -> CroppedPixels:
    """Crop a box from `draw_crop_box`, and resize it to `image_size`."""
    height, width = image_sides(image_size)
    lowest_aspect, highest_aspect = BOX_ASPECT
    # relative to the output's aspect
    aspect = (lowest_aspect * (width / height), highest_aspect * (width / height))
    image_height, image_width = image.shape[:2]
    box = draw_crop_box(image_height, image_width, rng, area, aspect)
    top, left, box_height, box_width = box
    cropped_image = image[top : top + box_height, left : left + box_width]
    return resize_fast(cropped_image, height, width)


def shift_image(image: RgbPixels, rng: Rng, max_shift: int) -> RgbPixels:
    """Move a small image by up to `max_shift` each way, over zeros, as in DeiT."""
    height, width = image.shape[:2]
    top, left = rng.integers(0, 2 * max_shift + 1, size=2)
    margins = (max_shift, max_shift)
    padded_image = np.pad(image, (margins, margins, (0, 0)))
    return padded_image[top : top + height, left : left + width]


def flip_image(image: RgbPixels, rng: Rng) -> RgbPixels:
    """Mirror the image left to right with probability 1/2."""
    if rng.random() >= 0.5:
        return image
    if cv2 is None:
        return image[:, ::-1]
    return cv2.flip(image, 1)  # 9 us for 224 x 224; NumPy's view takes 800 to copy


def resize_fast(
    image: CroppedPixels, height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Resize nearly like `resize_exactly`, but faster."""
    old_size = image.shape[:2]
    if old_size == (height, width):
        return image
    if cv2 is None:
        return resize_exactly(image, height, width)
    # A quarter of Pillow's time, and about half a level of 256 away from its result.
    # More than twice the new size: average by a whole factor first.
    averaged_height = old_size[0] // _averaging_factor(old_size[0], height)
    averaged_width = old_size[1] // _averaging_factor(old_size[1], width)
    if (averaged_height, averaged_width) != old_size:
        averaged_size = (averaged_width, averaged_height)  # OpenCV: width first
        image = cv2.resize(image, averaged_size, interpolation=cv2.INTER_AREA)
    # OpenCV's bicubic kernel differs from Pillow's and does not widen when images
    # shrink, so fine texture becomes noise. A short filter beforehand corrects both.
    row_filter = _resize_filter(averaged_width, width)
    column_filter = _resize_filter(averaged_height, height)
    image = cv2.sepFilter2D(
        image, -1, row_filter, column_filter, borderType=cv2.BORDER_REPLICATE
    )
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def _averaging_factor(old_side: int, new_side: int) -> int:
    """Whole factor to average by; at least twice the new side is left."""
    return max(1, old_side // (2 * new_side))


def _resize_filter(old_side: int, new_side: int) -> Float32[np.ndarray, " taps"]:
    if old_side == new_side:
        return np.ones(1, np.float32)
    # Rounded, so a few hundred filters serve all crops.
    return _fit_resize_filter(round(old_side / new_side, 2))


@functools.lru_cache(maxsize=1024)
def _fit_resize_filter(scale: float) -> Float32[np.ndarray, " taps"]:
    """Filter before OpenCV's resize; scale: old / new size."""
    # By least squares, the filter followed by OpenCV's kernel equals Pillow's kernel.
    # That kernel is `scale` times as wide when images shrink.
    kernel_scale = max(scale, 1.0)
    radius = math.ceil(2 * kernel_scale)
    x = np.linspace(0, 2 * kernel_scale + 2, 50 * radius)  # both are even functions
    wanted_kernel = _cubic_kernel(x / kernel_scale, _PILLOW_CUBIC) / kernel_scale
    shifted_kernels = [_cubic_kernel(x, _OPENCV_CUBIC)]
    for k in range(1, radius + 1):
        shifted_kernels.append(
            _cubic_kernel(x - k, _OPENCV_CUBIC) + _cubic_kernel(x + k, _OPENCV_CUBIC)
        )
    half_filter, *_ = np.linalg.lstsq(np.stack(shifted_kernels, axis=1), wanted_kernel)
    filter_weights = np.concatenate([half_filter[:0:-1], half_filter])
    return (filter_weights / filter_weights.sum()).astype(np.float32)


def _cubic_kernel(
    x: Float[np.ndarray, " points"], a: float
) -> Float[np.ndarray, " points"]:
    """Keys' cubic kernel: 1 at 0, 0 at other integers and beyond 2."""
    x = np.abs(x)
    inner_values = ((a + 2) * x - (a + 3)) * x**2 + 1
    outer_values = np.where(x < 2, a * (((x - 5) * x + 8) * x - 4), 0)
    return np.where(x < 1, inner_values, outer_values)


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Random crop and flip, a function of an image and a NumPy Generator."""

    image_size: ImageSize
    crop: str  # "random_resized"; "shift" or "none" for images of this size
    area: Bounds  # of crop area / image area
    shift: int  # largest shift in pixels
    flip: bool  # whether to flip at random

    @property
    def shape(self) -> tuple[int, int]:
        return image_sides(self.image_size)

    def __call__(self, image: RgbPixels, rng: Rng) -> CroppedPixels:
        if self.crop == "random_resized":
            image = random_resized_crop(image, self.image_size, rng, self.area)
        else:
            check_unresized(image, self.image_size)
            if self.crop == "shift":
                image = shift_image(image, rng, self.shift)
        if self.flip:
            image = flip_image(image, rng)
        return image
