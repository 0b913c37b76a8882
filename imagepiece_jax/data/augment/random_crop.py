"""Random crops and flips of one training image on the host: `TrainTransform`.

Functions take a uint8 RGB array [H, W, 3] and a NumPy Generator. Every function draws a
fixed count of random numbers, so later functions always get the same numbers.
"""

import dataclasses
import math

import numpy as np
from PIL import Image

from imagepiece_jax.common.image_size import ImageSize, image_sides
from imagepiece_jax.data import preprocessing
from imagepiece_jax.data.preprocessing import RgbPixels

CROP_TRIES = 10  # random boxes to try
CROP_KINDS = ("random_resized", "shift", "none")
BOX_ASPECTS = (3 / 4, 4 / 3)  # bounds of width / height, as in DeiT
Rng = np.random.Generator
Bounds = tuple[float, float]  # smallest and largest


def draw_crop_box(
    height: int, width: int, rng: Rng, areas: Bounds, aspects: Bounds = BOX_ASPECTS
) -> tuple[int, int, int, int]:
    """Draw a box (top, left, height, width): the Inception crop as in DeiT.

    areas: bounds of box area / image area, drawn uniformly
    aspects: bounds of width / height, whose logarithm is drawn uniformly
    """
    least_log_aspect, most_log_aspect = (math.log(bound) for bound in aspects)
    log_aspect_range = most_log_aspect - least_log_aspect
    for area_draw, aspect_draw, top_draw, left_draw in rng.random((CROP_TRIES, 4)):
        box_area = height * width * (areas[0] + area_draw * (areas[1] - areas[0]))
        box_aspect = math.exp(least_log_aspect + aspect_draw * log_aspect_range)
        box_width = round(math.sqrt(box_area * box_aspect))
        box_height = round(math.sqrt(box_area / box_aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(top_draw * (height - box_height + 1))
            left = int(left_draw * (width - box_width + 1))
            return top, left, box_height, box_width
    # No random box fits: the largest centered box within `aspects`.
    box_aspect = min(max(width / height, aspects[0]), aspects[1])
    box_width = min(width, round(height * box_aspect))
    box_height = min(height, round(width / box_aspect))
    top = (height - box_height) // 2
    left = (width - box_width) // 2
    return top, left, box_height, box_width


def random_resized_crop(
    image: RgbPixels, image_size: ImageSize, rng: Rng, areas: Bounds
) -> RgbPixels:
    """Crop a box from `draw_crop_box`, and resize it to `image_size`."""
    new_height, new_width = image_sides(image_size)
    # DeiT's bounds are for squares: an image of another shape is distorted as much.
    new_aspect = new_width / new_height
    aspects = (BOX_ASPECTS[0] * new_aspect, BOX_ASPECTS[1] * new_aspect)
    height, width = image.shape[:2]
    top, left, box_height, box_width = draw_crop_box(height, width, rng, areas, aspects)
    cropped_image = image[top : top + box_height, left : left + box_width]
    return preprocessing.resize_exactly(cropped_image, new_height, new_width)


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
    # Half the time of copying NumPy's mirrored view.
    return np.asarray(Image.fromarray(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT))


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

    def __call__(self, image: RgbPixels, rng: Rng) -> RgbPixels:
        if self.crop == "random_resized":
            image = random_resized_crop(image, self.image_size, rng, self.area)
        else:
            preprocessing.check_unresized(image, self.image_size)
            if self.crop == "shift":
                image = shift_image(image, rng, self.shift)
        if self.flip:
            image = flip_image(image, rng)
        return image
