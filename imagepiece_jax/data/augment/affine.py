"""Rotation, shear and translation of a batch, by Pillow's bicubic affine transform.

One affine map for each image, from positions in the result to positions in the source.
A gather of 4 x 4 pixels around each position does all of them in one pass.
"""

import jax
import jax.numpy as jnp

from imagepiece_jax.data.augment.policy import OPS

# Pillow cuts its double-precision result off to an integer. Sums of float32 may end up
# just below the integer that they stand for: a flat area must stay what it is.
_NUDGE = 1e-3


def matrices(op, magnitude, sign, height, width):
    """The maps of RandAugment's geometric operations, the identity for all others.

    op (index in OPS, or -1), magnitude, sign: [B]; the images are height x width.
    -> float32 [B, 6], (a, b, c, d, e, f): source x = a x + b y + c, y = d x + e y + f
    """
    degrees = sign * 30 * magnitude / 10
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    shear = sign * 0.3 * magnitude / 10
    move = sign * 0.45 * magnitude / 10
    zero, one = jnp.zeros_like(sign), jnp.ones_like(sign)
    x, y = width / 2, height / 2
    made = {
        # Around the center, which stays in place.
        "Rotate": (cos, -sin, x - x * cos + y * sin, sin, cos, y - x * sin - y * cos),
        "ShearX": (one, shear, zero, zero, one, zero),
        "ShearY": (one, zero, zero, shear, one, zero),
        "TranslateX": (one, zero, move * width, zero, one, zero),
        "TranslateY": (one, zero, zero, zero, one, move * height),
    }
    matrix = jnp.stack([one, zero, zero, zero, one, zero], axis=-1)
    for name, new in made.items():
        chosen = (op == OPS.index(name))[:, None]
        matrix = jnp.where(chosen, jnp.stack(new, axis=-1), matrix)
    return matrix


def affine(images, matrix, fill):
    """Apply `matrix` to the images. uint8 [B, H, W, 3], float32 [B, 6] -> the same.

    Bicubic with a = -1; a pixel whose center lies outside of the source is `fill` (red,
    green, blue), and beyond the edge the edge's pixels are repeated.
    """
    batch, height, width, _ = images.shape
    x, y = _source_positions(matrix, height, width)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    left, weights_x = _cubic(x - 0.5)
    top, weights_y = _cubic(y - 0.5)
    first = (jnp.arange(batch, dtype=jnp.int32) * (height * width))[:, None, None]
    columns = [jnp.clip(left + k, 0, width - 1) for k in range(4)]
    rows = [first + jnp.clip(top + k, 0, height - 1) * width for k in range(4)]
    pixels = images.reshape(-1, 3)
    total = jnp.float32(_NUDGE)
    for row, weight_y in zip(rows, weights_y, strict=True):
        line = jnp.float32(0)
        for column, weight_x in zip(columns, weights_x, strict=True):
            tap = pixels.at[row + column].get(mode="promise_in_bounds")
            line = line + weight_x[..., None] * tap.astype(jnp.float32)
        total = total + weight_y[..., None] * line
    moved = jnp.clip(total, 0, 255).astype(jnp.uint8)
    bare = jnp.asarray(fill, jnp.uint8)[None, None, None, :]
    # A program of its own: fused with what follows it needs half as much memory again.
    return jax.lax.optimization_barrier(jnp.where(inside[..., None], moved, bare))


def _source_positions(matrix, height, width):
    """Position in the source of each pixel's center: x and y, float32 [B, H, W]."""
    x = jnp.arange(width, dtype=jnp.float32)[None, None, :] + 0.5
    y = jnp.arange(height, dtype=jnp.float32)[None, :, None] + 0.5
    a, b, c, d, e, f = (matrix[:, k, None, None] for k in range(6))
    # Behind the barrier these are two arrays. Without it the compiler keeps every index
    # and weight that follows from them as an array of its own, and memory traffic on a
    # GPU is three times as much.
    return jax.lax.optimization_barrier((a * x + b * y + c, d * x + e * y + f))


def _cubic(position):
    """First of four neighbors and their weights, of positions counted in pixels."""
    first = jnp.floor(position)
    d = position - first
    weights = (
        d * (-1 + d * (2 - d)),
        1 + d * d * (d - 2),
        d * (1 + d * (1 - d)),
        d * d * (d - 1),
    )
    return first.astype(jnp.int32) - 1, weights
