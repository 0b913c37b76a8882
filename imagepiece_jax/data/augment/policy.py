"""What RandAugment draws from, and how (Cubuk et al., 2020).

The operations are timm's fifteen; the defaults are DeiT's `rand-m9-mstd0.5-inc1`, where
those that can grow stronger with the magnitude do.
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
