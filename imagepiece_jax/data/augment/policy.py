"""What the device draws for each training image.

RandAugment (Cubuk et al., 2020) has timm's fifteen operations here, and the defaults
are DeiT's `rand-m9-mstd0.5-inc1`: what can grow stronger with the magnitude does.
"""

import dataclasses

OPS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)
FILL = (124, 116, 104)  # ImageNet's mean as a pixel
MAX_MAGNITUDE = 10.0


@dataclasses.dataclass(frozen=True)
class Policy:
    """How RandAugment draws: `layers` operations, with replacement, for each image.

    Each is applied with probability `prob`, with a magnitude from the normal
    distribution around `magnitude` with deviation `magnitude_std`. What a moved image
    leaves bare gets the color `fill`.
    """

    layers: int = 2
    prob: float = 0.5
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    fill: tuple[int, int, int] = FILL


def fill_color(mean):
    """The color nearest to a model's mean of pixels in [0, 1], as in timm."""
    return tuple(min(255, round(255 * x)) for x in mean)


@dataclasses.dataclass(frozen=True)
class Crop:
    """The crop of a canvas: output side, shares of the area, and whether to flip."""

    size: int
    area: tuple[float, float] = (0.08, 1.0)
    flip: bool = True


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augmentation on the device; the defaults do nothing.

    crop: for batches of canvases, which come with their extents; policy: RandAugment,
    None where it is switched off; erase_prob: of random erasing.
    """

    crop: Crop | None = None
    policy: Policy | None = None
    erase_prob: float = 0.0

    @property
    def draws(self):
        """Whether anything is random, so that keys are needed."""
        return self != Augment()
