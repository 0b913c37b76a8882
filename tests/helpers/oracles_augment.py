"""Photographs, the reference's loop for erased boxes, and RandAugment by Pillow."""

import math

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps, ImageStat

from imagepiece_jax.data.augment.randaugment import OPERATION_NAMES


def photograph_pieces(count, height, width):
    """Pieces of two photographs and of their small copies. uint8 [count, H, W, 3]."""
    datasets = pytest.importorskip("sklearn.datasets")
    pieces = []
    for name in ("china.jpg", "flower.jpg"):
        large = Image.fromarray(datasets.load_sample_image(name))  # 640 x 427
        for factor in (1, 2, 3):
            small = np.asarray(large.reduce(factor))
            for top in range(0, small.shape[0] - height + 1, height):
                for left in range(0, small.shape[1] - width + 1, width):
                    pieces.append(small[top : top + height, left : left + width])
    chosen = np.linspace(0, len(pieces) - 1, count).astype(int)
    return np.stack([pieces[i] for i in chosen])


def erased_boxes(rng, count, side):
    """Heights and widths of erased boxes by the reference's loop. int [count, 2]"""
    boxes = []
    for _ in range(count):
        for _ in range(10):
            area = rng.uniform(0.02, 1 / 3) * side * side
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            height = round(math.sqrt(area * aspect))
            width = round(math.sqrt(area / aspect))
            if height < side and width < side:
                boxes.append((height, width))
                break
    return np.array(boxes)


def randaugment(image, draws, fill=(124, 116, 104)):
    """Drawn operations of any magnitude by Pillow. uint8 [H, W, 3] -> the same."""
    picture = Image.fromarray(image)
    for op, applied, magnitude, sign in zip(*draws, strict=True):
        if applied:
            drawn = OPERATION_NAMES[op], float(magnitude), float(sign)
            picture = _operated(picture, *drawn, fill)
    return np.asarray(picture)


def _operated(picture, name, m, sign, fill):
    shear = sign * 0.3 * m / 10
    shift = sign * 0.45 * m / 10
    # Pillow's matrices map positions in the result to positions in the source.
    matrices = {
        "ShearX": (1, shear, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, shear, 1, 0),
        "TranslateX": (1, 0, shift * picture.width, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, shift * picture.height),
    }
    options = {"resample": Image.Resampling.BICUBIC, "fillcolor": fill}
    if name in matrices:
        affine = Image.Transform.AFFINE, matrices[name]
        return picture.transform(picture.size, *affine, **options)
    if name == "Rotate":
        return picture.rotate(sign * 30 * m / 10, **options)
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        # Extrapolates from the other end, or interpolates toward it.
        factor = max(0.1, 1 + sign * 0.9 * m / 10)
        return Image.blend(_other_end(picture, name), picture, factor)
    if name == "Posterize":
        # Not ImageOps.posterize: it refuses to keep 0 bits, magnitude 10's black image.
        mask = 256 - 2 ** (8 - (4 - int(4 * m / 10)))
        return picture.point([v & mask for v in range(256)] * 3)
    if name == "Solarize":
        return ImageOps.solarize(picture, 256 - min(256, int(256 * m / 10)))
    if name == "SolarizeAdd":
        added = min(128, int(110 * m / 10))
        brighter = [min(255, v + added) if v < 128 else v for v in range(256)]
        return picture.point(brighter * 3)
    operations = {"AutoContrast": ImageOps.autocontrast, "Equalize": ImageOps.equalize}
    return (operations | {"Invert": ImageOps.invert})[name](picture)


def _other_end(picture, name):
    """The picture that an operation blends with."""
    gray = picture.convert("L")
    if name == "Color":
        return gray.convert("RGB")
    if name == "Contrast":
        mean = int(ImageStat.Stat(gray).mean[0] + 0.5)
        return Image.new("RGB", picture.size, (mean,) * 3)
    if name == "Brightness":
        return Image.new("RGB", picture.size)
    return picture.filter(ImageFilter.SMOOTH)
