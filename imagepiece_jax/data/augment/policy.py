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


@dataclasses.dataclass(frozen=True)
class Policy:
    """How RandAugment draws: `layers` operations, with replacement, for each image.

    Each is applied with probability `prob`, with a magnitude from the normal
    distribution around `magnitude` with deviation `magnitude_std`. What a moved image
    leaves bare gets the color `fill`.
    """

    layers: int
    prob: float
    magnitude: float
    magnitude_std: float
    fill: tuple[int, int, int]


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
    """Augmentation on the device; the defaults do nothing."""

    crop: Crop | None = None  # for batches of canvases, which come with their extents
    policy: Policy | None = None  # RandAugment
    erase_prob: float = 0.0  # of random erasing

    @property
    def draws(self):
        """Whether anything is random, so that keys are needed."""
        return self != Augment()
