"""The config groups data and augment: their fields, and the objects made from them.

Defaults and comments stand in configs/base.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from imagepiece_jax.common.fields import (
    REQUIRED,
    CheckedFields,
    choice,
    count,
    number,
    optional,
    rate,
    several,
    switch,
    text,
    weight,
)
from imagepiece_jax.data import preprocessing, registry, transforms
from imagepiece_jax.data.augment.policy import (
    MAX_MAGNITUDE,
    Augment,
    Crop,
    fill_color,
)
from imagepiece_jax.data.preprocessing import Preprocessing

AREA = "two shares of the image above 0 and up to 1, the lower one first"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(CheckedFields):
    """Which images there are, and what the host does to each of them."""

    group: ClassVar[str] = "data"

    name: str = text()
    dir: str = text()
    crop: str = choice(allowed=transforms.CROPS)
    area: tuple[float, float] = several(
        REQUIRED, number(above=0, most=1), AREA, length=2
    )
    shift: int = count()
    flip: bool = switch()
    resize: str = choice(allowed=preprocessing.RESIZES)
    eval_crop: float | None = optional(number(above=0, most=1))
    eval_crop_mode: str = choice(allowed=preprocessing.CROP_MODES)
    eval_interpolation: str = choice(allowed=preprocessing.INTERPOLATIONS)
    canvas: int = count()
    repeats: int = count(least=1)
    workers: int = count()
    threads: int = count()

    def __post_init__(self):
        super().__post_init__()
        if self.area[0] > self.area[1]:
            self.refuse("area", AREA)

    def source(
        self,
        split: str,
        num_classes: int | None,
        labeled: bool = True,
        labels_by_name: Mapping[str, int] | None = None,
    ) -> registry.Source:
        """The images of `split`, "train" or "val"; for the rest see `open_source`."""
        return registry.open_source(
            self.name,
            split,
            num_classes=num_classes,
            data_dir=self.dir or None,
            labeled=labeled,
            labels_by_name=labels_by_name,
        )

    def train_transform(
        self, image_size: int
    ) -> transforms.TrainTransform | transforms.CanvasTransform:
        """The host's transform of a training image; a canvas where the device crops."""
        if self.canvas:
            return transforms.CanvasTransform(self.canvas)
        return transforms.TrainTransform(
            image_size, self.crop, self.area, self.shift, self.flip
        )

    def preprocessing(self, image_size: int) -> Preprocessing:
        """Evaluation's resize and crop."""
        return Preprocessing.of(image_size, preprocessing.read_fields(vars(self)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig(CheckedFields):
    """The device's random augmentation of each training image."""

    group: ClassVar[str] = "augment"

    layers: int = count()
    prob: float = rate()
    magnitude: float = number(least=0, most=int(MAX_MAGNITUDE))
    magnitude_std: float = weight()
    erase_prob: float = rate()

    def create(self, data: DataConfig, image_size: int, mean) -> Augment:
        """The augmentation on the device; mean: the model's, colors bare pixels."""
        crop = Crop(image_size, data.area, data.flip) if data.canvas else None
        return Augment(**vars(self), fill=fill_color(mean), crop=crop)
