"""Resize and crop for evaluation: `Preprocessing`, for everything that reads images."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from imagepiece_jax.common import image_size as image_sizes
from imagepiece_jax.common.checks import check_options, check_range, option
from imagepiece_jax.common.image_size import ImageSize, size_text
from imagepiece_jax.errors import InputError

RgbPixels = UInt8[np.ndarray, "_ _ 3"]

DEIT_CROP = 0.875  # for models that state no crop
MAX_UNCROPPED = 32  # up to this many pixels a side, no stated crop means no crop
MAX_ASPECT = 300  # long to short side; longer images are cut before resizing

RESIZE_MODES = ("deit", "none")
CROP_MODES = ("center", "squash")
INTERPOLATION_NAMES = ("bicubic", "bilinear")
ROUNDING_RULES = ("timm", "transformers")
# {Preprocessing field: config.data field}
NAME_IN_CONFIG = {
    "crop": "eval_crop",
    "crop_mode": "eval_crop_mode",
    "interpolation": "eval_interpolation",
    "rule": "eval_rule",
    "resize": "resize",
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Evaluation's resize and center crop, a function of pixels."""

    # output size: pixels a side, or (height, width)
    image_size: ImageSize
    # crop side / resized side. The short side is resized to int(image_size / crop): to
    # 256 for 224 and DeiT's 0.875. None: DeiT's crop, or no crop for models of up to 32
    # pixels
    crop: float | None = None
    # "center" keeps the image's aspect ratio; "squash" does not
    crop_mode: str = option("center", CROP_MODES)
    # Pillow's, antialiased, as in published accuracies
    interpolation: str = option("bicubic", INTERPOLATION_NAMES)
    # library to follow in details. timm resizes in one Pillow call and rounds the
    # crop's start half to even, like torchvision. transformers resizes the width first,
    # an order that Pillow 13 does not always keep, and rounds down
    rule: str = option("timm", ROUNDING_RULES)
    # "none": images already have image_size
    resize: str = option("deit", RESIZE_MODES)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "image_size", image_sizes.checked_size(self.image_size)
        )
        if self.crop is not None:
            check_range("crop", self.crop, above=0, most=1)
        check_options(self)

    @property
    def shape(self) -> tuple[int, int]:
        return image_sizes.image_sides(self.image_size)  # (height, width)

    @property
    def resizes(self) -> bool:
        """Whether images are resized and cropped."""
        is_small = self.crop is None and max(self.shape) <= MAX_UNCROPPED
        return self.resize != "none" and not is_small

    @property
    def _crop_share(self):
        return DEIT_CROP if self.crop is None else self.crop

    @property
    def resized_size(self) -> tuple[int, int]:
        """(height, width) before the crop; in mode "center" images cover it."""
        height, width = self.shape
        return int(height / self._crop_share), int(width / self._crop_share)

    @property
    def description(self) -> str:
        """Describe the crop: "resize 256 bicubic, crop 224"."""
        if not self.resizes:
            return f"images as they are, {size_text(self.image_size)}"
        height, width = self.shape
        resized_text = size_text(self.resized_size)
        if self.crop_mode == "squash":
            resized_text += " squashed"
        elif height == width:
            resized_text = str(self.resized_size[0])
        crop_text = str(height) if height == width else size_text(self.shape)
        rule_text = "" if self.rule == "timm" else f" as in {self.rule}"
        resized_text += f" {self.interpolation}"
        return f"resize {resized_text}, crop {crop_text}{rule_text}"

    @property
    def as_json(self) -> dict[str, object]:
        """Fields that decide pixels, as JSON values."""
        size = list(self.shape)
        if not self.resizes:
            return {"image_size": size, "resize": "none"}
        return {**vars(self), "image_size": size, "crop": self._crop_share}

    # `rng` is ignored; training transforms draw from it.
    def __call__(self, image: RgbPixels, rng: Any = None) -> RgbPixels:
        """Resize, then crop the middle."""
        if not self.resizes:
            check_unresized(image, self.image_size)
            return image
        height, width = self.shape
        new_height, new_width = self.resized_size
        if self.crop_mode == "center":
            image = _cut_ends(image)
            new_height, new_width = _covering_size(image, new_height, new_width)
        if self.rule == "transformers":
            top = (new_height - height) // 2
            left = (new_width - width) // 2
            # The width in a separate call: a joint call may begin with the height.
            image = resize_exactly(image, len(image), new_width, self.interpolation)
        else:  # timm rounds to the nearest, where transformers rounds down
            top = round((new_height - height) / 2)
            left = round((new_width - width) / 2)
        resized_image = resize_exactly(image, new_height, new_width, self.interpolation)
        return resized_image[top : top + height, left : left + width]


def read_fields(data_config: Mapping[str, Any]) -> dict[str, Any]:
    """Preprocessing fields, except the size, from a run's config.data."""
    return {field: data_config[name] for field, name in NAME_IN_CONFIG.items()}


def resize_exactly(
    image: RgbPixels, height: int, width: int, interpolation: str = "bicubic"
) -> RgbPixels:
    """Resize by Pillow, with antialiasing."""
    resampling = Image.Resampling[interpolation.upper()]
    return np.asarray(Image.fromarray(image).resize((width, height), resampling))


def _covering_size(image, height, width):
    """Smallest size with the image's aspect ratio that covers (height, width)."""
    image_height, image_width = image.shape[:2]
    if height != width:  # timm rounds to the nearest
        scale = min(image_height / height, image_width / width)
        return round(image_height / scale), round(image_width / scale)
    if image_height <= image_width:
        # Squares: timm rounds down, like torchvision.
        return height, int(height * image_width / image_height)
    return int(width * image_height / image_width), width


def _cut_ends(image):
    """Cut both ends of an image longer than MAX_ASPECT times its width."""
    height, width = image.shape[:2]
    # A very thin image would be huge after resizing.
    longest_side = MAX_ASPECT * min(height, width)
    top = max(0, height - longest_side) // 2
    left = max(0, width - longest_side) // 2
    return image[top : height - top, left : width - left]


def check_unresized(image: RgbPixels, image_size: ImageSize) -> None:
    """Check that an image that is not resized has the model's size."""
    if image.shape[:2] != image_sizes.image_sides(image_size):
        raise InputError(
            f"the image has {size_text(image.shape[:2])} pixels and is not resized; "
            f"scale it to the model's image_size, {size_text(image_size)}"
        )
