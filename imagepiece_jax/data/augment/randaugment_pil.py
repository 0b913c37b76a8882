"""RandAugment: its policy, and its operations with Pillow on the host.

(Cubuk et al., 2020.) The operations are timm's fifteen; the defaults are DeiT's
`rand-m9-mstd0.5-inc1`, where those that can grow stronger with the magnitude do.
Pillow's results are the reference of `randaugment`, which works on the device, and what
`config.augment.where="host"` asks for. Nothing here imports JAX, so that worker
processes start without it.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFilter, ImageOps, ImageStat

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


class Draws(NamedTuple):
    """Drawn operations: arrays [layers] of one image or [B, layers] of a batch."""

    op: Any  # place in OPS
    applied: Any  # bool; else the image stays as it is
    magnitude: Any  # 0 .. 10
    sign: Any  # 1 or -1: the direction of operations that have two


def fill_color(mean):
    """The color nearest to a model's mean of pixels in [0, 1], as in timm."""
    return tuple(min(255, round(255 * x)) for x in mean)


def randaugment(image, rng, policy):
    """Draw `policy` from the generator `rng`, apply it. uint8 [H, W, 3] -> the same."""
    return apply(image, draw(rng, policy), policy.fill)


def draw(rng, policy):
    """`Draws` [layers] for one image from a NumPy generator."""
    magnitude = rng.normal(policy.magnitude, policy.magnitude_std, policy.layers)
    return Draws(
        op=rng.integers(len(OPS), size=policy.layers),
        applied=rng.random(policy.layers) < policy.prob,
        magnitude=np.clip(magnitude, 0.0, MAX_MAGNITUDE),
        sign=np.where(rng.random(policy.layers) < 0.5, -1.0, 1.0),
    )


def apply(image, draws, fill=FILL):
    """Apply the drawn operations one after the other. uint8 [H, W, 3] -> the same."""
    picture = Image.fromarray(image)
    for op, applied, magnitude, sign in zip(*draws, strict=True):
        if applied:
            name, m, sign = OPS[op], float(magnitude), float(sign)
            if name in _WARPS:
                picture = _WARPS[name](picture, m, sign, fill)
            else:
                picture = _OPERATIONS[name](picture, m, sign)
    return np.asarray(picture)


def _rotate(picture, m, sign, fill):
    return picture.rotate(
        sign * 30 * m / 10, resample=Image.Resampling.BICUBIC, fillcolor=fill
    )


def _affine(picture, fill, *matrix):
    """Pillow's matrices map positions in the result to positions in the source."""
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BICUBIC,
        fillcolor=fill,
    )


def _shear_x(picture, m, sign, fill):
    return _affine(picture, fill, 1, sign * 0.3 * m / 10, 0, 0, 1, 0)


def _shear_y(picture, m, sign, fill):
    return _affine(picture, fill, 1, 0, 0, sign * 0.3 * m / 10, 1, 0)


def _translate_x(picture, m, sign, fill):
    return _affine(picture, fill, 1, 0, sign * 0.45 * m / 10 * picture.width, 0, 1, 0)


def _translate_y(picture, m, sign, fill):
    return _affine(picture, fill, 1, 0, 0, 0, 1, sign * 0.45 * m / 10 * picture.height)


def _posterize(picture, m, sign):
    # Not ImageOps.posterize: it refuses to keep 0 bits, magnitude 10's black image.
    kept = 256 - 2 ** (8 - (4 - int(4 * m / 10)))
    return picture.point([v & kept for v in range(256)] * 3)


def _solarize(picture, m, sign):
    return ImageOps.solarize(picture, 256 - min(256, int(256 * m / 10)))


def _solarize_add(picture, m, sign):
    added = min(128, int(110 * m / 10))
    return picture.point(
        [min(255, v + added) if v < 128 else v for v in range(256)] * 3
    )


def _blend(picture, degenerate, m, sign):
    """From `degenerate` through the picture and beyond, or part of the way."""
    return Image.blend(degenerate, picture, max(0.1, 1 + sign * 0.9 * m / 10))


def _color(picture, m, sign):
    return _blend(picture, picture.convert("L").convert("RGB"), m, sign)


def _contrast(picture, m, sign):
    mean = int(ImageStat.Stat(picture.convert("L")).mean[0] + 0.5)
    return _blend(picture, Image.new("RGB", picture.size, (mean,) * 3), m, sign)


def _brightness(picture, m, sign):
    return _blend(picture, Image.new("RGB", picture.size), m, sign)


def _sharpness(picture, m, sign):
    return _blend(picture, picture.filter(ImageFilter.SMOOTH), m, sign)


# (picture, magnitude, sign) -> picture
_OPERATIONS = {
    "AutoContrast": lambda picture, m, sign: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, m, sign: ImageOps.equalize(picture),
    "Invert": lambda picture, m, sign: ImageOps.invert(picture),
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
}

# (picture, magnitude, sign, fill) -> picture
_WARPS = {
    "Rotate": _rotate,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
}
