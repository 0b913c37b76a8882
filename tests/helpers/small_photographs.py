"""Small photographs that are no copies of each other."""

import numpy as np
from PIL import Image

from tests.helpers import tiny_vit


def pixels_of(count, seed=0):
    """uint8 [count, H, W, 3]: a few large random fields each."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        field = rng.integers(0, 256, (5, 5, 3), np.uint8)
        side = (tiny_vit.SIDE, tiny_vit.SIDE)
        images.append(np.asarray(Image.fromarray(field).resize(side)))
    return np.stack(images)


def write(folder, count, seed=0):
    """A new folder with them as PNG files."""
    folder.mkdir(parents=True)
    for number, image in enumerate(pixels_of(count, seed)):
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return folder
