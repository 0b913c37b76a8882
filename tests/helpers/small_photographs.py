"""Small photographs, all of them different."""

import numpy as np
from PIL import Image

from tests.helpers import tiny_vit
from tests.helpers.picture_files import write_images


def draw(count, seed=0):
    """Images of a few large random fields. uint8 [count, H, W, 3]."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        field = rng.integers(0, 256, (5, 5, 3), np.uint8)
        side = (tiny_vit.SIDE, tiny_vit.SIDE)
        images.append(np.asarray(Image.fromarray(field).resize(side)))
    return np.stack(images)


def write_photographs(folder, count, seed=0):
    """Write photographs as PNG files into a new folder, and return it."""
    write_images(folder, draw(count, seed))
    return folder
