"""The device's random augmentation of each training image.

RandAugment (Cubuk et al., 2020) has timm's fifteen operations here, as DeiT's
`rand-m9-mstd0.5-inc1` has them: what can grow stronger with the magnitude does.
Defaults stand in configs/base.py.
"""

OPS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize"),
    *("SolarizeAdd", "Color", "Contrast", "Brightness", "Sharpness"),
    *("ShearX", "ShearY", "TranslateX", "TranslateY"),
)
MAX_MAGNITUDE = 10.0


def fill_color(mean):
    """The color nearest to a model's mean of pixels in [0, 1], as in timm."""
    return tuple(min(255, round(255 * x)) for x in mean)
