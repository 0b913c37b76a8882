"""The config groups data and augment: their fields, and the objects made from them.

Defaults and comments stand in configs/base.py.
"""

import dataclasses
from typing import ClassVar

from imagepiece_jax.common import fields
from imagepiece_jax.common.fields import CheckedFields
from imagepiece_jax.data import preprocessing, train_crop
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.input import registry

MAX_MAGNITUDE = 10.0
AREA = "two shares of the image above 0 and up to 1, the smaller one first"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(CheckedFields):
    """Which images there are, and what the host does to each of them."""

    group: ClassVar[str] = "data"

    name: str = fields.text()
    dir: str = fields.text()
    crop: str = fields.choice(allowed=train_crop.CROPS)
    area: tuple[float, float] = fields.several(
        fields.REQUIRED, fields.number(above=0, most=1), AREA, length=2
    )
    shift: int = fields.count()
    flip: bool = fields.switch()
    resize: str = fields.choice(allowed=preprocessing.RESIZES)
    eval_crop: float | None = fields.optional(fields.number(above=0, most=1))
    eval_crop_mode: str = fields.choice(allowed=preprocessing.CROP_MODES)
    eval_interpolation: str = fields.choice(allowed=preprocessing.INTERPOLATIONS)
    eval_rule: str = fields.choice(allowed=preprocessing.RULES)
    repeats: int = fields.count(least=1)
    workers: int = fields.count()
    threads: int = fields.count()

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "name", registry.full_name(self.name))
        if self.area[0] > self.area[1]:
            self.refuse("area", AREA)

    def source(self, split: str, **options) -> registry.Source:
        """The images of `split`, "train" or "val"; options: of `open_source`."""
        folder = self.dir or None
        return registry.open_source(self.name, split, data_dir=folder, **options)

    def train_transform(self, image_size: int) -> train_crop.TrainTransform:
        """The random crop and flip of a training image."""
        return train_crop.TrainTransform(
            image_size, self.crop, self.area, self.shift, self.flip
        )

    def preprocessing(self, image_size: int) -> Preprocessing:
        """Evaluation's resize and crop."""
        fields = preprocessing.read_fields(vars(self))
        return Preprocessing(image_size, **fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig(CheckedFields):
    """The device's random augmentation of each training image.

    RandAugment draws `layers` operations, with replacement, for each image. Each is
    applied with probability `prob`, with a magnitude from the normal distribution
    around `magnitude` with deviation `magnitude_std`.
    """

    group: ClassVar[str] = "augment"

    layers: int = fields.count()
    prob: float = fields.rate()
    magnitude: float = fields.number(least=0, most=int(MAX_MAGNITUDE))
    magnitude_std: float = fields.weight()
    erase_prob: float = fields.rate()
