"""Crops on the device against those of the host and Pillow's resize."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data import transforms
from imagepiece_jax.data.augment import crop
from tests.oracles_augment import photographs

AREA = (0.08, 1.0)

boxes = jax.jit(crop.boxes)


class Given:
    """A generator that gives these numbers."""

    def __init__(self, numbers):
        self.numbers = np.asarray(numbers, np.float64)

    def random(self, shape):
        assert self.numbers.shape == shape
        return self.numbers


def test_boxes_are_those_of_the_host():
    """From the same numbers, in large, small, thin and square images."""
    sizes = [(375, 500), (500, 375), (256, 341), (64, 64), (40, 300), (300, 30), (3, 9)]
    extent = np.array(sizes * 40, np.int32)
    uniforms = np.random.default_rng(0).random((len(extent), 10, 4), np.float32)
    out = np.asarray(boxes(extent, uniforms, AREA))
    hosts = [
        transforms.crop_box(*size, Given(numbers), AREA)
        for size, numbers in zip(extent.tolist(), uniforms, strict=True)
    ]
    # float32 and float64 may fall on both sides of a half.
    assert np.abs(out - hosts).max() <= 1 and (out == hosts).mean() > 0.99
    assert out.dtype == np.int32
    fallback = np.array(hosts)[extent[:, 0] == 40]
    assert (fallback[:, 2] == 40).any(), "some images must need the centerd box"


CANVAS = 96
BOXES = {  # (top, left, height, width) in images of 80 x 60
    "shrinks": (3, 5, 75, 54),
    "grows": (30, 20, 14, 17),
    "both": (0, 41, 80, 19),
    "as it is": (11, 7, 32, 32),
    "a corner": (79, 59, 1, 1),
}


@functools.cache
def resized():
    """Photographs of 80 x 60 in canvases of noise, cut and resized to 32 x 32."""
    count = len(BOXES)
    canvas = np.random.default_rng(0).integers(0, 256, (count, CANVAS, CANVAS, 3))
    canvas = canvas.astype(np.uint8)
    canvas[:, :80, :60] = photographs(count, 80, 60)
    box = np.array(list(BOXES.values()), np.int32)
    return canvas, np.asarray(jax.jit(crop.resize, static_argnums=2)(canvas, box, 32))


@pytest.mark.parametrize("index", range(len(BOXES)), ids=list(BOXES))
def test_resize_is_pillow_s(index):
    """And nothing from outside of the box gets in."""
    canvas, out = resized()
    top, left, height, width = list(BOXES.values())[index]
    box = canvas[index, top : top + height, left : left + width]
    expected = Image.fromarray(box).resize((32, 32), Image.Resampling.BICUBIC)
    error = np.abs(out[index].astype(int) - np.asarray(expected))
    assert out.dtype == np.uint8
    assert error.max() <= 1 and error.mean() < 0.05  # most of it ties


def test_a_crop_is_a_box_of_the_image():
    """In a ramp a value is its position; beyond the extent there is only 255."""
    extent = np.array([[60, 90], [96, 40], [50, 50]] * 20, np.int32)
    canvas = np.full((60, CANVAS, CANVAS, 3), 255, np.uint8)
    for image, (height, width) in zip(canvas, extent, strict=True):
        image[:height, :width, 0] = 2 * np.arange(height)[:, None]
        image[:height, :width, 1] = 2 * np.arange(width)[None, :]
        image[:height, :width, 2] = 7
    keys = jax.random.split(jax.random.key(1), 60)
    cut = jax.jit(crop.random_resized_crop, static_argnames=("size", "area"))
    out = np.asarray(cut(canvas, extent, keys, size=16, area=AREA)).astype(int)
    assert (out[..., 2] == 7).all()
    uniforms = jax.vmap(lambda key: jax.random.uniform(key, (10, 4)))(keys)
    place = (np.arange(16) + 0.5) / 16
    drawn = np.asarray(boxes(extent, uniforms, AREA))
    assert len({tuple(box) for box in drawn}) > 50
    for image, (top, left, height, width) in zip(out, drawn, strict=True):
        down, along = top + place * height - 0.5, left + place * width - 0.5
        assert np.abs(image[:, :, 0] - 2 * down[:, None])[2:-2].max() <= 2.5
        assert np.abs(image[:, :, 1] - 2 * along[None, :])[:, 2:-2].max() <= 2.5
