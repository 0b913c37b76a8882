"""RandAugment of a batch on the device (Cubuk et al., 2020).

Operations are timm's fifteen, as in DeiT's `rand-m9-mstd0.5-inc1`: an effect that can
grow stronger with the magnitude does. Results equal Pillow's and timm's to one level of
256.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from imagepiece_jax.data.config import MAX_MAGNITUDE, AugmentConfig

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


class OperationDraws(NamedTuple):
    """Drawn operations, arrays [batch, layers]."""

    operation: jax.Array  # index in OPERATION_NAMES
    is_applied: jax.Array  # bool; else the image stays as it is
    magnitude: jax.Array  # 0 .. 10
    sign: jax.Array  # 1 or -1: the direction of two-sided operations


def randaugment(
    images: jax.Array, keys: jax.Array, augment: AugmentConfig, fill: Sequence[int]
) -> jax.Array:
    """Draw and apply operations to uint8 [B, H, W, 3]; `fill` is the color of gaps."""
    return apply_operations(images, draw_operations(keys, augment), fill)


def fill_color(mean: Sequence[float]) -> tuple[int, ...]:
    """Color nearest to a pixel mean in [0, 1], as in timm."""
    return tuple(min(255, round(255 * channel_mean)) for channel_mean in mean)


def draw_operations(keys: jax.Array, augment: AugmentConfig) -> OperationDraws:
    """Draw operations from one key per image."""

    def draw_for_image(key):
        operation_key, applied_key, magnitude_key, sign_key = jax.random.split(key, 4)
        shape = (augment.layers,)
        noise = augment.magnitude_std * jax.random.normal(magnitude_key, shape)
        return OperationDraws(
            operation=jax.random.randint(operation_key, shape, 0, len(OPERATION_NAMES)),
            is_applied=jax.random.uniform(applied_key, shape) < augment.prob,
            magnitude=jnp.clip(augment.magnitude + noise, 0.0, MAX_MAGNITUDE),
            sign=jnp.where(
                jax.random.uniform(sign_key, shape) < 0.5, jnp.float32(1), -1
            ),
        )

    return jax.vmap(draw_for_image)(keys)


def apply_operations(
    images: jax.Array, draws: OperationDraws, fill: Sequence[int]
) -> jax.Array:
    """Apply drawn operations layer by layer."""
    # [batch, layers]; -1: none.
    operation = jnp.where(draws.is_applied, draws.operation, -1)
    for layer in range(operation.shape[1]):
        magnitude_and_sign = (draws.magnitude[:, layer], draws.sign[:, layer])
        images = _apply_layer(images, operation[:, layer], *magnitude_and_sign, fill)
    return images


def _apply_layer(images, operation, magnitude, sign, fill):
    """Apply one operation, an index [B], to each image [B, H, W, 3]."""
    # Fifteen branches would compute every operation for every image. One lookup, one
    # affine transform and one blend cover them; every image takes its own result. All
    # places exist in the tables, so none is checked.
    tables = make_lookup_tables(images, operation, magnitude, sign).reshape(-1)
    looked_up_images = tables.at[_table_indices(images)].get(mode="promise_in_bounds")
    matrices = _make_affine_matrices(operation, magnitude, sign, *images.shape[1:3])
    moving_indices = jnp.array(_MOVING_INDICES, operation.dtype)
    is_moved = jnp.isin(operation, moving_indices)[:, None, None, None]
    needs_blend = (operation == _COLOR_INDEX) | (operation == _SHARPNESS_INDEX)
    is_blended = needs_blend[:, None, None, None]
    moved_images = _move_pixels(images, matrices, fill)
    blended_images = _enhance_images(images, operation, _blend_factor(magnitude, sign))
    recolored_images = jnp.where(is_blended, blended_images, looked_up_images)
    return jnp.where(is_moved, moved_images, recolored_images)


def _enhance_images(images, operation, factor):
    """Blend images [B, H, W, 3] with a gray (Color) or smoothed (Sharpness) version.

    factor: [B], of the image; the degenerate version, as Pillow says, has the rest
    """
    gray = jnp.broadcast_to(_gray_levels(images)[..., None], images.shape)
    is_sharpness = (operation == _SHARPNESS_INDEX)[:, None, None, None]
    degenerate_images = jnp.where(is_sharpness, _smooth_images(images), gray)
    image_factor = factor[:, None, None, None]
    return _blend_images(degenerate_images, images, image_factor).astype(jnp.uint8)


def _smooth_images(images):
    """Pillow's SMOOTH: 3 x 3 mean with a fivefold center; edge pixels stay."""
    height, width = images.shape[1:3]
    levels = images.astype(jnp.int32)  # [B, H, W, 3]
    vertical_sums = levels[:, :-2] + levels[:, 1:-1] + levels[:, 2:]
    neighborhood_sums = (
        vertical_sums[:, :, :-2] + vertical_sums[:, :, 1:-1] + vertical_sums[:, :, 2:]
    )
    weighted_sums = neighborhood_sums + 4 * levels[:, 1:-1, 1:-1]
    # A thirteenth, rounded: no sum lies halfway.
    inner_means = (2 * weighted_sums + 13) // 26
    padded_means = jnp.pad(inner_means, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = jnp.arange(height)[:, None]
    columns = jnp.arange(width)[None, :]
    is_end_row = (rows == 0) | (rows == height - 1)
    is_edge = is_end_row | (columns == 0) | (columns == width - 1)  # [H, W]
    return jnp.where(is_edge[None, :, :, None], levels, padded_means)


def _gray_levels(images):
    """Gray levels from 0 to 255, int32 [B, H, W]."""
    red, green, blue = jnp.unstack(images.astype(jnp.int32), axis=-1)
    red_weight, green_weight, blue_weight = LUMINANCE_WEIGHTS
    weighted_sum = red_weight * red + green_weight * green + blue_weight * blue
    return (weighted_sum + 0x8000) >> 16  # weights are in 65,536ths; rounded


def _blend_factor(magnitude, sign):
    """Blend factor: 1 keeps the image; magnitude 9 gives 1.81 or 0.19, as in timm."""
    return jnp.maximum(0.1, 1 + sign * 0.9 * magnitude / 10)


def _blend_images(degenerate, image, factor):
    """degenerate + factor * (image - degenerate), truncated as in Pillow."""
    degenerate = degenerate.astype(jnp.float32)
    blended_levels = degenerate + factor * (image.astype(jnp.float32) - degenerate)
    return jnp.clip(blended_levels, 0, 255).astype(jnp.int32)


def make_lookup_tables(
    images: jax.Array, operation: jax.Array, magnitude: jax.Array, sign: jax.Array
) -> jax.Array:
    """New values for every value and channel, uint8 [B, 3, 256].

    The identity for other operations.
    """
    values = jnp.arange(256, dtype=jnp.int32)[None, None, :]  # [1, 1, 256]
    strength = magnitude[:, None, None]  # [B, 1, 1]
    factor = _blend_factor(strength, sign[:, None, None])
    # Integers and rounding as in timm, and in Pillow's ImageOps and ImageEnhance.
    bits = 4 - (4 * strength / 10).astype(jnp.int32)
    inverted_levels = (256 * strength / 10).astype(jnp.int32)
    threshold = 256 - jnp.minimum(256, inverted_levels)
    addend = jnp.minimum(128, (110 * strength / 10).astype(jnp.int32))
    table_of_name = {
        "AutoContrast": _autocontrast_tables(images, values),
        "Equalize": _equalize_tables(
            _count_values(images, operation == OPERATION_NAMES.index("Equalize"))
        ),
        "Invert": 255 - values,
        "Posterize": (values >> (8 - bits)) << (8 - bits),
        "Solarize": jnp.where(values < threshold, values, 255 - values),
        "SolarizeAdd": jnp.where(
            values < 128, jnp.minimum(255, values + addend), values
        ),
        "Contrast": _blend_images(_mean_gray(images)[:, None, None], values, factor),
        "Brightness": _blend_images(jnp.zeros_like(values), values, factor),
    }
    shape = (images.shape[0], 3, 256)
    all_tables = (values, *table_of_name.values())
    stacked_tables = jnp.stack([jnp.broadcast_to(table, shape) for table in all_tables])
    is_chosen = [operation == OPERATION_NAMES.index(name) for name in table_of_name]
    has_no_table = ~functools.reduce(jnp.logical_or, is_chosen)
    table_weights = jnp.stack([has_no_table, *is_chosen]).astype(jnp.float32)
    # A product with zeros and a one, because a compiler folds a chain of selects into
    # the lookup and computes the table anew for every pixel.
    float_tables = stacked_tables.astype(jnp.float32)  # [tables, batch, 3, 256]
    chosen_tables = jnp.einsum("tb,tbcv->bcv", table_weights, float_tables)
    return chosen_tables.astype(jnp.uint8)


def _table_indices(images):
    """Place of every value in flattened tables [B, 3, 256]."""
    image_index = jax.lax.broadcasted_iota(jnp.int32, images.shape, 0)
    channel_index = jax.lax.broadcasted_iota(jnp.int32, images.shape, 3)
    return (image_index * 3 + channel_index) * 256 + images.astype(jnp.int32)


def _mean_gray(images):
    """Rounded mean gray level, [B]; exact up to 2,000 x 2,000 pixels."""
    num_pixels = images.shape[1] * images.shape[2]  # of [B, H, W, 3]
    return (2 * _gray_levels(images).sum((1, 2)) + num_pixels) // (2 * num_pixels)


def _autocontrast_tables(images, values):
    """Stretch channels between their darkest and brightest value."""
    darkest_value = images.min((1, 2)).astype(jnp.int32)[:, :, None]  # [B, 3, 1]
    span = images.max((1, 2)).astype(jnp.int32)[:, :, None] - darkest_value
    stretched_values = (values - darkest_value) * 255 // jnp.maximum(span, 1)
    return jnp.where(span > 0, jnp.clip(stretched_values, 0, 255), values)


def _count_values(images, is_chosen):
    """Pixel counts per value, [B, 3, 256]; zeros for images not chosen."""
    # One scatter that drops images not chosen: histograms of all images would be the
    # most expensive part of the augmentation, and one in thirty is needed. Integer sums
    # do not depend on their order.
    num_bins = images.shape[0] * 3 * 256
    bins = jnp.where(is_chosen[:, None, None, None], _table_indices(images), num_bins)
    counts = jnp.zeros(num_bins, jnp.int32).at[bins.reshape(-1)].add(1, mode="drop")
    return counts.reshape(images.shape[0], 3, 256)


def _equalize_tables(histograms):
    """Tables that spread values over equal pixel counts, as histograms [B, 3, 256]."""
    values = jnp.arange(256, dtype=jnp.int32)[None, None, :]
    num_pixels = histograms.sum(-1, keepdims=True, dtype=jnp.int32)
    brightest_value = jnp.max(jnp.where(histograms > 0, values, 0), -1, keepdims=True)
    brightest_count = jnp.take_along_axis(histograms, brightest_value, axis=-1)
    # A channel with fewer than 255 pixels below its brightest value stays unchanged.
    bin_pixels = (num_pixels - brightest_count) // 255
    pixels_below = jnp.cumsum(histograms, -1, dtype=jnp.int32) - histograms
    spread_values = (bin_pixels // 2 + pixels_below) // jnp.maximum(bin_pixels, 1)
    return jnp.where(bin_pixels > 0, jnp.minimum(spread_values, 255), values)


def _make_affine_matrices(operation, magnitude, sign, height, width):
    """Affine maps for operations [B]; the identity if not geometric.

    Returns [B, 6]: (a, b, c, d, e, f) of source x = a x + b y + c, y = d x + e y + f,
        in pixels.
    """
    # The largest rotation, shear and shift are timm's, at magnitude 10.
    degrees = sign * 30 * magnitude / 10
    cos = jnp.cos(jnp.deg2rad(degrees))
    sin = jnp.sin(jnp.deg2rad(degrees))
    shear = sign * 0.3 * magnitude / 10
    shift = sign * 0.45 * magnitude / 10
    zero = jnp.zeros_like(sign)
    one = jnp.ones_like(sign)
    center_x = width / 2
    center_y = height / 2
    coefficients_of_name = {
        # Around the center (center_x, center_y), which stays in place.
        "Rotate": (cos, -sin, center_x - center_x * cos + center_y * sin)
        + (sin, cos, center_y - center_x * sin - center_y * cos),
        "ShearX": (one, shear, zero, zero, one, zero),
        "ShearY": (one, zero, zero, shear, one, zero),
        "TranslateX": (one, zero, shift * width, zero, one, zero),
        "TranslateY": (one, zero, zero, zero, one, shift * height),
    }
    matrices = jnp.stack([one, zero, zero, zero, one, zero], axis=-1)
    for name, coefficients in coefficients_of_name.items():
        is_chosen = (operation == OPERATION_NAMES.index(name))[:, None]
        matrices = jnp.where(is_chosen, jnp.stack(coefficients, axis=-1), matrices)
    return matrices


def _move_pixels(images, matrices, fill):
    """Move pixels along affine maps, with Pillow's bicubic weights (a = -1).

    fill: color where a pixel's center lies outside the source
    """
    num_images, height, width, _ = images.shape
    center_x = jnp.arange(width, dtype=jnp.float32)[None, None, :] + 0.5
    center_y = jnp.arange(height, dtype=jnp.float32)[None, :, None] + 0.5
    # The letters of `_make_affine_matrices`, [B, 1, 1] each.
    a, b, c, d, e, f = [matrices[:, index, None, None] for index in range(6)]
    # Source position of every pixel's center. Behind the barrier x and y are two
    # arrays. Without it the compiler stores every derived index and weight as a
    # separate array, and memory traffic on a GPU triples.
    source_x_y = a * center_x + b * center_y + c, d * center_x + e * center_y + f
    x, y = jax.lax.optimization_barrier(source_x_y)
    is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    left, weights_x = _cubic_neighbors(x - 0.5)
    top, weights_y = _cubic_neighbors(y - 0.5)
    starts = jnp.arange(num_images, dtype=jnp.int32) * (height * width)
    image_starts = starts[:, None, None]  # places in `pixels`
    # Clipped indices repeat the edge's pixels beyond the edge. So all exist: without
    # the promise of it every index would be checked.
    columns = [jnp.clip(left + offset, 0, width - 1) for offset in range(4)]
    row_starts = []
    for offset in range(4):
        row_starts.append(image_starts + jnp.clip(top + offset, 0, height - 1) * width)
    pixels = images.reshape(-1, 3)
    pixel_sum = jnp.float32(_ROUNDING_NUDGE)
    for row_start, weight_y in zip(row_starts, weights_y, strict=True):
        row_sum = jnp.float32(0)
        for column, weight_x in zip(columns, weights_x, strict=True):
            neighbor = pixels.at[row_start + column].get(mode="promise_in_bounds")
            # [B, H, W] weights of [B, H, W, 3] levels.
            row_sum = row_sum + weight_x[..., None] * neighbor.astype(jnp.float32)
        pixel_sum = pixel_sum + weight_y[..., None] * row_sum
    moved_images = jnp.clip(pixel_sum, 0, 255).astype(jnp.uint8)
    fill_pixel = jnp.asarray(fill, jnp.uint8)[None, None, None, :]
    # The barrier keeps the next operation apart: fused, both need half as much memory
    # again.
    return jax.lax.optimization_barrier(
        jnp.where(is_inside[..., None], moved_images, fill_pixel)
    )


def _cubic_neighbors(position):
    """Index of the first of four neighbors on an axis, and cubic weights (a = -1)."""
    whole_position = jnp.floor(position)  # pixel k has its center at position k
    d = position - whole_position  # distance from the second neighbor
    weights = (
        d * (-1 + d * (2 - d)),
        1 + d * d * (d - 2),
        d * (1 + d * (1 - d)),
        d * d * (d - 1),
    )
    return whole_position.astype(jnp.int32) - 1, weights
