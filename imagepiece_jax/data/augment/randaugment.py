"""RandAugment of a batch on the device (Cubuk et al., 2020).

Operations are timm's fifteen, as in DeiT's `rand-m9-mstd0.5-inc1`: an effect that can
grow stronger with the magnitude does. Results equal Pillow's and timm's to one level of
256.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import (
    Array,
    Bool,
    Float,
    Float32,
    Int,
    Int32,
    Integer,
    Key,
    PRNGKeyArray,
    UInt8,
)

from imagepiece_jax.common.rng import draw_integers, draw_normal, draw_uniform
from imagepiece_jax.data.config import MAX_MAGNITUDE, AugmentConfig
from imagepiece_jax.data.normalize import PixelImages

OPERATION_NAMES = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize"),
    *("SolarizeAdd", "Color", "Contrast", "Brightness", "Sharpness"),
    *("ShearX", "ShearY", "TranslateX", "TranslateY"),
)
_MOVING_NAMES = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
_MOVING_INDICES = tuple(map(OPERATION_NAMES.index, _MOVING_NAMES))
_COLOR_INDEX = OPERATION_NAMES.index("Color")
_SHARPNESS_INDEX = OPERATION_NAMES.index("Sharpness")
# Red, green and blue weights in 65,536ths (ITU-R 601, as in Pillow).
LUMINANCE_WEIGHTS = (19595, 38470, 7471)
# Pillow truncates a double-precision result to an integer. A float32 sum may end just
# below its integer, and a flat area must not change.
_ROUNDING_NUDGE = 1e-3


Operations: TypeAlias = Int[Array, " batch"]  # index in OPERATION_NAMES; -1: none
PerImage: TypeAlias = Float[Array, " batch"]
Tables: TypeAlias = Int[Array, "batch 3 256"]  # a new value for every value and channel
Levels: TypeAlias = Integer[Array, "..."]  # from 0 to 255
BlendFactors: TypeAlias = Float[Array, "*batch"]
Positions: TypeAlias = Float32[Array, "batch height width"]  # in pixels
Matrices: TypeAlias = Float32[Array, "batch 6"]
Keys: TypeAlias = Key[Array, " batch"]
Color: TypeAlias = Sequence[int]  # red, green and blue, from 0 to 255


class OperationDraws(NamedTuple):
    """Drawn operations, arrays [batch, layers]."""

    op: jax.Array  # index in OPERATION_NAMES
    applied: jax.Array  # bool; else the image stays as it is
    magnitude: jax.Array  # 0 .. 10
    sign: jax.Array  # 1 or -1: the direction of two-sided operations


def randaugment(
    images: PixelImages, keys: Keys, augment: AugmentConfig, fill: Color
) -> PixelImages:
    """Draw and apply operations; `fill` is where a moved image leaves a gap."""
    return apply_operations(images, draw_operations(keys, augment), fill)


def fill_color(mean: Sequence[float]) -> Color:
    """Color nearest to a pixel mean in [0, 1], as in timm."""
    return tuple(min(255, round(255 * channel_mean)) for channel_mean in mean)


def draw_operations(keys: Keys, augment: AugmentConfig) -> OperationDraws:
    """Draw operations from one key per image."""

    def draw_for_image(key: PRNGKeyArray) -> OperationDraws:
        op_key, applied_key, magnitude_key, sign_key = jax.random.split(key, 4)
        shape = (augment.layers,)
        noise = augment.magnitude_std * draw_normal(magnitude_key, shape)
        return OperationDraws(
            op=draw_integers(op_key, shape, 0, len(OPERATION_NAMES)),
            applied=draw_uniform(applied_key, shape) < augment.prob,
            magnitude=jnp.clip(augment.magnitude + noise, 0.0, MAX_MAGNITUDE),
            sign=jnp.where(draw_uniform(sign_key, shape) < 0.5, jnp.float32(1), -1),
        )

    return jax.vmap(draw_for_image)(keys)


def apply_operations(
    images: PixelImages, draws: OperationDraws, fill: Color
) -> PixelImages:
    """Apply drawn operations layer by layer."""
    applied_op = jnp.where(draws.applied, draws.op, -1)
    for layer in range(applied_op.shape[1]):
        op = applied_op[:, layer]
        magnitude = draws.magnitude[:, layer]
        sign = draws.sign[:, layer]
        images = _apply_layer(images, op, magnitude, sign, fill)
    return images


def _apply_layer(
    images: PixelImages,
    op: Operations,
    magnitude: PerImage,
    sign: PerImage,
    fill: Color,
) -> PixelImages:
    """Apply one operation per image."""
    # Fifteen branches would compute every operation for every image. One lookup, one
    # affine transform and one blend cover them; every image takes its own result.
    table = lookup_tables(images, op, magnitude, sign).reshape(-1)
    looked_up = table.at[_table_indices(images)].get(mode="promise_in_bounds")
    matrix = affine_matrices(op, magnitude, sign, *images.shape[1:3])
    moves = jnp.isin(op, jnp.array(_MOVING_INDICES, op.dtype))[:, None, None, None]
    blends = ((op == _COLOR_INDEX) | (op == _SHARPNESS_INDEX))[:, None, None, None]
    moved = move_pixels(images, matrix, fill)
    enhanced = _enhance_images(images, op, blend_factor(magnitude, sign))
    unmoved = jnp.where(blends, enhanced, looked_up)
    return jnp.where(moves, moved, unmoved)


def _enhance_images(
    images: PixelImages, op: Operations, share: PerImage
) -> PixelImages:
    """Blend images with their gray (Color) or smoothed (Sharpness) version."""
    gray = jnp.broadcast_to(gray_levels(images)[..., None], images.shape)
    sharpens = (op == _SHARPNESS_INDEX)[:, None, None, None]
    degenerate = jnp.where(sharpens, _smooth_images(images), gray)
    blended = blend_images(degenerate, images, share[:, None, None, None])
    return blended.astype(jnp.uint8)


def _smooth_images(images: PixelImages) -> Int32[Array, "batch height width 3"]:
    """3 x 3 mean with a fivefold center; edge pixels stay."""
    height, width = images.shape[1:3]
    levels = images.astype(jnp.int32)
    rows = levels[:, :-2] + levels[:, 1:-1] + levels[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    total = total + 4 * levels[:, 1:-1, 1:-1]
    inner = (2 * total + 13) // 26  # total / 13, rounded: no sum lies halfway
    padded = jnp.pad(inner, ((0, 0), (1, 1), (1, 1), (0, 0)))
    row = jnp.arange(height)[:, None]
    column = jnp.arange(width)[None, :]
    is_edge = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
    return jnp.where(is_edge[None, :, :, None], levels, padded)


def gray_levels(images: PixelImages) -> Int32[Array, "batch height width"]:
    """Gray levels from 0 to 255."""
    red = images[..., 0].astype(jnp.int32)
    green = images[..., 1].astype(jnp.int32)
    blue = images[..., 2].astype(jnp.int32)
    total = (
        LUMINANCE_WEIGHTS[0] * red
        + LUMINANCE_WEIGHTS[1] * green
        + LUMINANCE_WEIGHTS[2] * blue
    )
    return (total + 0x8000) >> 16


def blend_factor(magnitude: BlendFactors, sign: BlendFactors) -> BlendFactors:
    """Blend factor: 1 keeps the image; magnitude 9 gives 1.81 or 0.19."""
    return jnp.maximum(0.1, 1 + sign * 0.9 * magnitude / 10)


def blend_images(degenerate: Levels, image: Levels, share: BlendFactors) -> Levels:
    """degenerate + share * (image - degenerate), truncated as in Pillow."""
    start = degenerate.astype(jnp.float32)
    blended = start + share * (image.astype(jnp.float32) - start)
    return jnp.clip(blended, 0, 255).astype(jnp.int32)


def lookup_tables(
    images: PixelImages, op: Operations, magnitude: PerImage, sign: PerImage
) -> UInt8[Array, "batch 3 256"]:
    """New values for every value and channel; the identity for other operations."""
    value = jnp.arange(256, dtype=jnp.int32)[None, None, :]
    m = magnitude[:, None, None]
    direction = sign[:, None, None]
    share = blend_factor(m, direction)
    # Integers and rounding as in Pillow's ImageOps and ImageEnhance.
    bits = 4 - (4 * m / 10).astype(jnp.int32)
    threshold = 256 - jnp.minimum(256, (256 * m / 10).astype(jnp.int32))
    added = jnp.minimum(128, (110 * m / 10).astype(jnp.int32))
    table_of_name = {
        "AutoContrast": _autocontrast_tables(images, value),
        "Equalize": _equalize_tables(
            _value_histograms(images, op == OPERATION_NAMES.index("Equalize"))
        ),
        "Invert": 255 - value,
        "Posterize": (value >> (8 - bits)) << (8 - bits),
        "Solarize": jnp.where(value < threshold, value, 255 - value),
        "SolarizeAdd": jnp.where(value < 128, jnp.minimum(255, value + added), value),
        "Contrast": blend_images(_mean_gray(images)[:, None, None], value, share),
        "Brightness": blend_images(jnp.zeros_like(value), value, share),
    }
    shape = (images.shape[0], 3, 256)
    every_table = (value, *table_of_name.values())
    choices = jnp.stack([jnp.broadcast_to(table, shape) for table in every_table])
    is_chosen = [op == OPERATION_NAMES.index(name) for name in table_of_name]
    takes = jnp.stack([~functools.reduce(jnp.logical_or, is_chosen), *is_chosen])
    # A product with zeros and a one, because a compiler folds a chain of selects into
    # the lookup and computes the table anew for every pixel.
    table = jnp.einsum(
        "kb,kbcv->bcv", takes.astype(jnp.float32), choices.astype(jnp.float32)
    )
    return table.astype(jnp.uint8)


def _table_indices(images: PixelImages) -> Int32[Array, "batch height width 3"]:
    """Pixel indices in flattened tables."""
    image = jax.lax.broadcasted_iota(jnp.int32, images.shape, 0)
    channel = jax.lax.broadcasted_iota(jnp.int32, images.shape, 3)
    return (image * 3 + channel) * 256 + images.astype(jnp.int32)


def _mean_gray(images: PixelImages) -> Int32[Array, " batch"]:
    """Rounded mean gray level; exact up to 2,000 x 2,000 pixels."""
    pixels = images.shape[1] * images.shape[2]
    return (2 * gray_levels(images).sum((1, 2)) + pixels) // (2 * pixels)


def _autocontrast_tables(images: PixelImages, value: Int32[Array, "1 1 256"]) -> Tables:
    """Stretch channels between their darkest and brightest value."""
    low = images.min((1, 2)).astype(jnp.int32)[:, :, None]
    span = images.max((1, 2)).astype(jnp.int32)[:, :, None] - low
    stretched = jnp.clip((value - low) * 255 // jnp.maximum(span, 1), 0, 255)
    return jnp.where(span > 0, stretched, value)


def _value_histograms(images: PixelImages, is_chosen: Bool[Array, " batch"]) -> Tables:
    """Pixel counts per value; zeros for images not chosen."""
    # One scatter that drops images not chosen: histograms of all images would be the
    # most expensive part of the augmentation, and one in thirty is needed. Integer sums
    # do not depend on their order.
    num_bins = images.shape[0] * 3 * 256
    bins = jnp.where(is_chosen[:, None, None, None], _table_indices(images), num_bins)
    empty = jnp.zeros(num_bins, jnp.int32)
    counts = empty.at[bins.reshape(-1)].add(1, mode="drop")
    return counts.reshape(images.shape[0], 3, 256)


def _equalize_tables(histograms: Tables) -> Tables:
    """Tables that spread values over equal pixel counts."""
    value = jnp.arange(256, dtype=jnp.int32)[None, None, :]
    total = histograms.sum(-1, keepdims=True, dtype=jnp.int32)
    brightest = jnp.max(jnp.where(histograms > 0, value, 0), -1, keepdims=True)
    brightest_count = jnp.take_along_axis(histograms, brightest, axis=-1)
    # A channel with fewer than 255 pixels below its brightest value stays unchanged.
    bin_pixels = (total - brightest_count) // 255
    below = jnp.cumsum(histograms, -1, dtype=jnp.int32) - histograms
    spread = (bin_pixels // 2 + below) // jnp.maximum(bin_pixels, 1)
    return jnp.where(bin_pixels > 0, jnp.minimum(spread, 255), value)


def affine_matrices(
    op: Operations, magnitude: PerImage, sign: PerImage, height: int, width: int
) -> Matrices:
    """Affine maps of the geometric operations; the identity for other operations.

    Returns (a, b, c, d, e, f): source x = a x + b y + c, y = d x + e y + f, in pixels.
    """
    degrees = sign * 30 * magnitude / 10
    cos = jnp.cos(jnp.deg2rad(degrees))
    sin = jnp.sin(jnp.deg2rad(degrees))
    shear = sign * 0.3 * magnitude / 10
    shift = sign * 0.45 * magnitude / 10
    zero = jnp.zeros_like(sign)
    one = jnp.ones_like(sign)
    x = width / 2
    y = height / 2
    coefficients_of_name = {
        # Around the center, which stays in place.
        "Rotate": (cos, -sin, x - x * cos + y * sin, sin, cos, y - x * sin - y * cos),
        "ShearX": (one, shear, zero, zero, one, zero),
        "ShearY": (one, zero, zero, shear, one, zero),
        "TranslateX": (one, zero, shift * width, zero, one, zero),
        "TranslateY": (one, zero, zero, zero, one, shift * height),
    }
    matrix = jnp.stack([one, zero, zero, zero, one, zero], axis=-1)
    for name, coefficients in coefficients_of_name.items():
        is_chosen = (op == OPERATION_NAMES.index(name))[:, None]
        matrix = jnp.where(is_chosen, jnp.stack(coefficients, axis=-1), matrix)
    return matrix


def move_pixels(
    images: PixelImages, affine_matrices: Matrices, fill: Color
) -> PixelImages:
    """Move pixels along `affine_matrices`, with Pillow's bicubic weights (a = -1).

    fill: color where a pixel's center lies outside the source
    """
    batch, height, width, _ = images.shape
    x, y = _source_positions(affine_matrices, height, width)
    is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    left, weights_x = _cubic_neighbors(x - 0.5)
    top, weights_y = _cubic_neighbors(y - 0.5)
    first_pixel = (jnp.arange(batch, dtype=jnp.int32) * (height * width))[:, None, None]
    # Clipped indices repeat the edge's pixels beyond the edge.
    columns = [jnp.clip(left + k, 0, width - 1) for k in range(4)]
    row_starts = [
        first_pixel + jnp.clip(top + k, 0, height - 1) * width for k in range(4)
    ]
    pixels = images.reshape(-1, 3)
    pixel_sum = jnp.float32(_ROUNDING_NUDGE)
    for row_start, weight_y in zip(row_starts, weights_y, strict=True):
        row_sum = jnp.float32(0)
        for column, weight_x in zip(columns, weights_x, strict=True):
            tap = pixels.at[row_start + column].get(mode="promise_in_bounds")
            row_sum = row_sum + weight_x[..., None] * tap.astype(jnp.float32)
        pixel_sum = pixel_sum + weight_y[..., None] * row_sum
    moved = jnp.clip(pixel_sum, 0, 255).astype(jnp.uint8)
    fill_pixel = jnp.asarray(fill, jnp.uint8)[None, None, None, :]
    # The barrier keeps the next operation apart: fused, both need half as much memory
    # again.
    return jax.lax.optimization_barrier(
        jnp.where(is_inside[..., None], moved, fill_pixel)
    )


def _source_positions(
    matrix: Matrices, height: int, width: int
) -> tuple[Positions, Positions]:
    """Source position of every pixel's center: x and y."""
    x = jnp.arange(width, dtype=jnp.float32)[None, None, :] + 0.5
    y = jnp.arange(height, dtype=jnp.float32)[None, :, None] + 0.5
    a, b, c, d, e, f = [matrix[:, k, None, None] for k in range(6)]
    # Behind the barrier x and y are two arrays. Without it the compiler stores every
    # derived index and weight as a separate array, and memory traffic on a GPU triples.
    source_x = a * x + b * y + c
    source_y = d * x + e * y + f
    return jax.lax.optimization_barrier((source_x, source_y))


def _cubic_neighbors(
    position: Positions,
) -> tuple[Int32[Array, "batch height width"], tuple[Positions, ...]]:
    """First of four neighbors along an axis, and their cubic weights (a = -1)."""
    center = jnp.floor(position)  # pixel k has its center at position k
    d = position - center
    weights = (
        d * (-1 + d * (2 - d)),
        1 + d * d * (d - 2),
        d * (1 + d * (1 - d)),
        d * d * (d - 1),
    )
    return center.astype(jnp.int32) - 1, weights
