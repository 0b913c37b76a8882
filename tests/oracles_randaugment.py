"""RandAugment's operations with Pillow, one image after the other, at any magnitude."""

import numpy as np
from PIL import Image, ImageFilter, ImageOps, ImageStat

from imagepiece_jax.data.augment.policy import OPS


def apply(image, draws, fill=(124, 116, 104)):
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
