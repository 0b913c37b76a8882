"""The device's random augmentation of each training image.

RandAugment (Cubuk et al., 2020) has timm's fifteen operations here, as DeiT's
`rand-m9-mstd0.5-inc1` has them: what can grow stronger with the magnitude does.
Defaults stand in configs/base.py.
"""

import dataclasses

OPS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize"),
    *("SolarizeAdd", "Color", "Contrast", "Brightness", "Sharpness"),
    *("ShearX", "ShearY", "TranslateX", "TranslateY"),
)
MAX_MAGNITUDE = 10.0


def fill_color(mean):
    """The color nearest to a model's mean of pixels in [0, 1], as in timm."""
    return tuple(min(255, round(255 * x)) for x in mean)


@dataclasses.dataclass(frozen=True)
class Crop:
    """The crop of a canvas: output side, shares of the area, and whether to flip."""

    size: int
    area: tuple[float, float]
    flip: bool


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augmentation on the device; the defaults do nothing.

    RandAugment draws `layers` operations, with replacement, for each image. Each is
    applied with probability `prob`, with a magnitude from the normal distribution
    around `magnitude` with deviation `magnitude_std`.
    """

    layers: int = 0
    prob: float = 0.0
    magnitude: float = 0.0
    magnitude_std: float = 0.0
    fill: tuple[int, int, int] = (0, 0, 0)  # the color of what a moved image leaves
    erase_prob: float = 0.0  # of random erasing
    crop: Crop | None = None  # for batches of canvases, which come with their extents

    @property
    def draws(self):
        """Whether anything is random, so that keys are needed."""
        return self.layers > 0 or self.erase_prob > 0 or self.crop is not None
