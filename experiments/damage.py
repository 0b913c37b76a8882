"""Damage of images: noise, blur and JPEG, drawn by an image's index.

Each takes uint8 [H, W, 3] and the index, and returns uint8 [H, W, 3].
"""

import functools
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFilter


def add_noise(pixels: np.ndarray, index: int, std: float) -> np.ndarray:
    """Gaussian noise in every channel; `std` is a share of the full range."""
    draw = np.random.default_rng([0, int(index)])
    noise = draw.normal(0, 255 * std, pixels.shape)
    rounded = np.rint(pixels + noise)
    return np.clip(rounded, 0, 255).astype(np.uint8)


def blur(pixels: np.ndarray, index: int, radius: float) -> np.ndarray:
    """A Gaussian whose standard deviation is `radius` pixels."""
    image = Image.fromarray(pixels)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)))


def compress(pixels: np.ndarray, index: int, quality: int) -> np.ndarray:
    """Stored as JPEG of this quality, and read back."""
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    image.save(file, "JPEG", quality=quality)
    stored = Image.open(file)
    return np.asarray(stored.convert("RGB"))


DAMAGE = {
    "noise .1": functools.partial(add_noise, std=0.1),
    "noise .2": functools.partial(add_noise, std=0.2),
    "blur 1": functools.partial(blur, radius=1),
    "blur 2": functools.partial(blur, radius=2),
    "JPEG 25": functools.partial(compress, quality=25),
    "JPEG 10": functools.partial(compress, quality=10),
}


def damaged(batch: Mapping[str, Any], damage: Callable) -> dict[str, Any]:
    """A batch whose images, uint8 [.., H, W, 3], are damaged one by one."""
    images = np.asarray(batch["image"])
    flat = images.reshape(-1, *images.shape[-3:])
    changed = []
    for pixels, index in zip(flat, np.ravel(batch["index"]), strict=True):
        changed.append(damage(pixels, index))
    return {**batch, "image": np.stack(changed).reshape(images.shape)}
