"""Config groups data and augment: their fields, and the objects made from them.

Defaults and comments are in configs/base.py.
"""

import dataclasses

from imagepiece_jax.common.checks import check_choice, check_range, check_share
from imagepiece_jax.data import preprocessing
from imagepiece_jax.data.augment import random_crop
from imagepiece_jax.data.sources import registry
from imagepiece_jax.errors import InputError

MAX_MAGNITUDE = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Config group data: which images to read, and how the host transforms them."""

    name: str
    dir: str
    crop: str
    area: tuple[float, float]
    shift: int
    flip: bool
    resize: str
    eval_crop: float | None
    eval_crop_mode: str
    eval_interpolation: str
    eval_rule: str
    repeats: int
    workers: int
    threads: int

    def __post_init__(self):
        object.__setattr__(self, "name", registry.full_name(self.name))
        for name, allowed in (
            ("crop", random_crop.CROPS),
            ("resize", preprocessing.RESIZES),
            ("eval_crop_mode", preprocessing.CROP_MODES),
            ("eval_interpolation", preprocessing.INTERPOLATIONS),
            ("eval_rule", preprocessing.RULES),
        ):
            check_choice(f"config.data.{name}", getattr(self, name), allowed)
        for share in self.area:
            check_share("config.data.area", share)
        if len(self.area) != 2 or self.area[0] > self.area[1]:
            raise InputError(
                f"config.data.area is {self.area}; it must be two shares, the smaller "
                "one first"
            )
        if self.eval_crop is not None:
            check_share("config.data.eval_crop", self.eval_crop)
        for name in ("shift", "workers", "threads"):
            check_range(f"config.data.{name}", getattr(self, name), 0, whole=True)
        check_range("config.data.repeats", self.repeats, 1, whole=True)

    def source(self, split: str, **options) -> registry.Source:
        """Open `split`, "train" or "val"; options as for `open_source`."""
        folder = self.dir or None
        return registry.open_source(self.name, split, data_dir=folder, **options)

    def train_transform(self, image_size: int) -> random_crop.TrainTransform:
        """Random crop and flip of a training image."""
        return random_crop.TrainTransform(
            image_size, self.crop, self.area, self.shift, self.flip
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Config group augment: random augmentation on the device.

    RandAugment draws `layers` operations per image, with replacement. It applies an
    operation with probability `prob`, at a magnitude from the normal distribution
    (`magnitude`, `magnitude_std`).
    """

    layers: int
    prob: float
    magnitude: float
    magnitude_std: float
    erase_prob: float

    def __post_init__(self):
        check_range("config.augment.layers", self.layers, 0, whole=True)
        check_range("config.augment.prob", self.prob, 0, 1)
        check_range("config.augment.magnitude", self.magnitude, 0, MAX_MAGNITUDE)
        check_range("config.augment.magnitude_std", self.magnitude_std, 0)
        check_range("config.augment.erase_prob", self.erase_prob, 0, 1)
