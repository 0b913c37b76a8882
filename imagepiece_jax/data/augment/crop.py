"""Random resized crops on the device, for batches of fixed canvases.

Image i lies in the top left corner of its square, and `extent` is its size. Boxes are
those of `transforms.crop_box`, pixels those of Pillow's bicubic resize of the box: a
crop here and one on the host look the same.
"""

import math

import jax
import jax.numpy as jnp

from imagepiece_jax.common.rng import uniform

TRIES = 10
ASPECT = (3 / 4, 4 / 3)  # width / height of a box


def random_resized_crop(canvas, extent, keys, size, area):
    """Resize a random box of each image to size x size.

    canvas: uint8 [B, C, C, 3]
    extent: int32 [B, 2], height and width of the image in it
    keys: [B]
    area: lowest and highest share of the image that a box covers
    Returns uint8 [B, size, size, 3].
    """
    uniforms = jax.vmap(lambda key: uniform(key, (TRIES, 4)))(keys)
    return resize(canvas, boxes(extent, uniforms, area), size)


def boxes(extent, uniforms, area):
    """Boxes inside images of `extent`, as those of `transforms.crop_box`.

    extent: [B, 2]
    uniforms: [B, tries, 4] in [0, 1), of a try its area, aspect, top and left
    Returns (top, left, height, width), int32 [B, 4].
    """
    height, width = (extent[:, k, None].astype(jnp.float32) for k in range(2))
    share, ratio, down, right = (uniforms[:, :, k] for k in range(4))
    low, high = (math.log(bound) for bound in ASPECT)
    pixels = height * width * (area[0] + share * (area[1] - area[0]))
    ratio = jnp.exp(low + ratio * (high - low))
    tall = jnp.round(jnp.sqrt(pixels / ratio))
    wide = jnp.round(jnp.sqrt(pixels * ratio))
    fits = (0 < wide) & (wide <= width) & (0 < tall) & (tall <= height)
    top = jnp.floor(down * (height - tall + 1))
    left = jnp.floor(right * (width - wide + 1))
    tried = jnp.stack([top, left, tall, wide], axis=-1)
    first = jnp.argmax(fits, axis=1)[:, None, None]
    chosen = jnp.take_along_axis(tried, first, axis=1)[:, 0]
    some_fit = fits.any(axis=1)[:, None]
    height, width = height[:, 0], width[:, 0]  # of the centered box, where none fits
    ratio = jnp.clip(width / height, *ASPECT)
    wide = jnp.minimum(width, jnp.round(height * ratio))
    tall = jnp.minimum(height, jnp.round(width / ratio))
    top, left = jnp.floor((height - tall) / 2), jnp.floor((width - wide) / 2)
    centered = jnp.stack([top, left, tall, wide], axis=-1)
    return jnp.where(some_fit, chosen, centered).astype(jnp.int32)


def resize(canvas, box, size):
    """Resize each box to size x size: bicubic, antialiased where it shrinks.

    Two products with weights, columns first and rounded between as Pillow does.

    canvas: uint8 [B, C, C, 3]
    box: int32 [B, 4], (top, left, height, width)
    Returns uint8 [B, size, size, 3].
    """
    pixels = canvas.astype(jnp.float32)
    columns = _weights(box[:, 1], box[:, 3], canvas.shape[2], size)
    rows = _weights(box[:, 0], box[:, 2], canvas.shape[1], size)
    pixels = _levels(jnp.einsum("bxw,bhwc->bhxc", columns, pixels))
    return _levels(jnp.einsum("byh,bhxc->byxc", rows, pixels)).astype(jnp.uint8)


def _levels(values):
    """Round to the levels 0 .. 255, still float32."""
    return jnp.clip(jnp.floor(values + 0.5), 0, 255)


def _weights(start, length, source, size):
    """Weights of `source` old pixels in each of `size` new ones.

    start, length: int32 [B], the box along this side. -> float32 [B, size, source]; a
    row adds up to 1 and takes nothing from outside the box.
    """
    start, length = (x.astype(jnp.float32)[:, None, None] for x in (start, length))
    scale = length / size
    center = start + (jnp.arange(size, dtype=jnp.float32)[None, :, None] + 0.5) * scale
    position = jnp.arange(source, dtype=jnp.float32)[None, None, :] + 0.5
    inside = (position > start) & (position < start + length)
    weight = jnp.where(inside, _cubic((position - center) / jnp.maximum(scale, 1)), 0)
    return weight / weight.sum(-1, keepdims=True)


def _cubic(distance):
    """Keys' cubic kernel with a = -0.5, zero from 2 on."""
    x = jnp.abs(distance)
    near = 1 + x * x * (1.5 * x - 2.5)
    far = 2 + x * (-4 + x * (2.5 - 0.5 * x))
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))
