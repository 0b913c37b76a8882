"""What is RandAugment here? Its operations, how many an image gets, and how strong.

Plain data that the two ways of doing it share: randaugment.py on the device and
randaugment_host.py with Pillow. The defaults are DeiT's `rand-m9-mstd0.5-inc1`: timm's
fifteen operations, those that can grow stronger with the magnitude in that form.
"""

import dataclasses
from typing import Any, NamedTuple

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
MOST = 10.0  # magnitudes are clamped to 0 .. 10


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


class Draws(NamedTuple):
    """What was drawn: arrays [layers] of one image or [B, layers] of a batch."""

    op: Any  # place in OPS
    applied: Any  # bool; else the image stays as it is
    magnitude: Any  # 0 .. 10
    sign: Any  # 1 or -1: the direction of operations that have two


def fill_of(mean):
    """The color nearest to a model's mean of pixels in [0, 1], as timm has it."""
    return tuple(min(255, round(255 * x)) for x in mean)
