"""Config groups data and augment: their options, and the objects made from them."""

import dataclasses
from typing import Any

from imagepiece_jax.common.checks import check_options, option
from imagepiece_jax.data import preprocessing
from imagepiece_jax.data.augment import random_crop
from imagepiece_jax.data.sources import registry
from imagepiece_jax.errors import InputError

MAX_MAGNITUDE = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Config group data: which images to read, and how the host transforms them."""

    name: str = "imagenet2012"  # a data set of `data.sources.registry`
    dir: str = ""  # TFDS's folder of data sets; empty: TFDS's default
    crop: str = option("random_resized", random_crop.CROP_KINDS)  # of a training image
    # Smallest and largest share of the image that "random_resized" covers.
    area: tuple[float, float] = option((0.08, 1.0), above=0, most=1)
    shift: int = option(4, least=0)  # pixels, for "shift"
    flip: bool = True  # Half of the training images are mirrored, left to right.
    # Evaluation resizes the short side to image_size / eval_crop and crops the center;
    # "none": images already have image_size.
    resize: str = option("deit", preprocessing.RESIZE_MODES)
    # Crop side / resized side. Empty: the start weights' crop with its mode,
    # interpolation and rule, else DeiT's 0.875; images of up to 32 pixels stay as they
    # are. The next three fields need it for other values.
    eval_crop: float | None = option(None, above=0, most=1)
    eval_crop_mode: str = option("center", preprocessing.CROP_MODES)
    eval_interpolation: str = option("bicubic", preprocessing.INTERPOLATION_NAMES)
    eval_rule: str = option("timm", preprocessing.ROUNDING_RULES)  # whose rounding
    # Copies of an image in a row (repeated augmentation). An epoch keeps its steps, and
    # sees 1 / repeats of the images.
    repeats: int = option(3, least=1)
    workers: int = option(8, least=0)  # reading processes; 0: the training process
    threads: int = option(2, least=0)  # decoding threads per worker; 0: none

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", registry.complete_name(self.name))
        check_options(self, "config.data")
        if len(self.area) != 2 or self.area[0] > self.area[1]:
            raise InputError(f"config.data.area is {self.area}; it must be two shares")

    def open_split(self, split: str, **options: Any) -> registry.Source:
        """Open `split`, "train" or "val"; options as for `open_source`."""
        options["data_dir"] = self.dir or None
        return registry.open_source(self.name, split, **options)

    def train_transform(self, image_size: int) -> random_crop.TrainTransform:
        """Random crop and flip of a training image."""
        return random_crop.TrainTransform(
            image_size, self.crop, self.area, self.shift, self.flip
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Config group augment: RandAugment and random erasing on the device."""

    layers: int = option(2, least=0)  # operations per image, with replacement; 0: off
    prob: float = option(0.5, least=0, most=1)  # probability of an operation
    magnitude: float = option(9.0, least=0, most=MAX_MAGNITUDE)  # mean of normal draws
    magnitude_std: float = option(0.5, least=0)
    erase_prob: float = option(0.25, least=0, most=1)  # of a box of noise; 0: off

    def __post_init__(self) -> None:
        check_options(self, "config.augment")
