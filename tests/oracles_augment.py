"""Photographs, and their augmentation by Pillow and slow NumPy.

Nothing here shares code with what it checks; arguments are numbers worked out by hand.
"""

import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

BICUBIC = Image.Resampling.BICUBIC
AFFINE = Image.Transform.AFFINE


def photographs(count, height, width):
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


def at_nine(picture, name, sign):
    """RandAugment's operation `name` on a Pillow image at magnitude 9."""
    up = sign > 0
    factor = 1.81 if up else 0.19  # 1 +- .9 * .9
    width, height = picture.size
    moved = {
        "ShearX": (1, 0.27 * sign, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, 0.27 * sign, 1, 0),
        "TranslateX": (1, 0, 0.405 * sign * width, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, 0.405 * sign * height),
    }
    if name in moved:
        gray = (124, 116, 104)
        return picture.transform(picture.size, AFFINE, moved[name], BICUBIC, 1, gray)
    if name == "Rotate":
        return picture.rotate(27 * sign, BICUBIC, fillcolor=(124, 116, 104))
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        return getattr(ImageEnhance, name)(picture).enhance(factor)
    return {
        "AutoContrast": lambda: ImageOps.autocontrast(picture),
        "Equalize": lambda: ImageOps.equalize(picture),
        "Invert": lambda: ImageOps.invert(picture),
        "Posterize": lambda: ImageOps.posterize(picture, 1),
        "Solarize": lambda: ImageOps.solarize(picture, 26),
        "SolarizeAdd": lambda: solarize_add(picture, 99),
    }[name]()


def solarize_add(picture, added):
    """The darker half of the values grows by `added`."""
    values = np.asarray(picture).astype(int)
    values[values < 128] = np.minimum(values[values < 128] + added, 255)
    return Image.fromarray(values.astype(np.uint8))


def erased_boxes(rng, count, side):
    """Heights and widths of random erasing by the reference's loop. int [count, 2]"""
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
