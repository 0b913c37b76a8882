"""Damage of images: noise, blur and JPEG, drawn by an image's index.

Each takes uint8 [H, W, 3] and the index, and returns uint8 [H, W, 3].
"""

import dataclasses
import functools
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from imagepiece_jax.data.preprocessing import resize_exactly
from imagepiece_jax.data.train_crop import TrainTransform


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


# Damage that is learned from

SHARE = 0.5  # of the crops that are damaged
SIDES = (2 / 7, 6 / 7)  # as shares of the crop's: 64 to 192 of 224 pixels
QUALITIES = (8, 60)
STDS = (0.03, 0.2)


def shrink(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Reduced to a side that is drawn, and enlarged again."""
    height, width = pixels.shape[:2]
    share = rng.uniform(*SIDES)
    small = resize_exactly(pixels, round(share * height), round(share * width))
    return resize_exactly(small, height, width)


def store(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stored as JPEG of a quality that is drawn."""
    low, high = QUALITIES
    return compress(pixels, 0, int(rng.integers(low, high + 1)))


def roughen(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of a strength that is drawn."""
    noise = rng.normal(0, 255 * rng.uniform(*STDS), pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


KINDS = (shrink, store, roughen)


@dataclasses.dataclass(frozen=True)
class Damaged:
    """A crop that is damaged half of the time: (image, rng) -> [H, W, 3] uint8."""

    crop: TrainTransform

    def __call__(self, image, rng):
        return self.of_crop(self.crop(image, rng), rng)

    def of_crop(self, pixels, rng):
        """Damage a crop, after what was drawn for it."""
        if rng.random() >= SHARE:
            return pixels
        damage = KINDS[rng.integers(len(KINDS))]
        return damage(pixels, rng)
