"""Photographs, and random erasing's boxes by the reference's loop."""

import math

import numpy as np
import pytest
from PIL import Image


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
