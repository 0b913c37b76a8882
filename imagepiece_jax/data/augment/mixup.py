"""Mixup, cutmix and label smoothing on the device, one draw per batch (as in DeiT).

Functions are pure: all draws come from the key of `training.train_step`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

Batch = tuple[jax.Array, jax.Array]  # images [B, H, W, 3], targets [B, classes]
BETA_TRIES = 8  # at least one try is accepted, except in 1 draw of 10^10


def soft_targets(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Smoothed one-hot rows that sum to 1, float32 [.., num_classes]."""
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return one_hot * (1 - smoothing) + smoothing / num_classes


@struct.dataclass
class Mix:
    """One draw for all images of a batch: how they mix with their partners."""

    own_share: jax.Array  # of the image and its target; the partner has the rest
    box: jax.Array  # top, bottom, left, right of the partner's part, if `is_cutmix`
    is_cutmix: jax.Array  # bool; else mixup


def draw_mix(key: jax.Array, height: int, width: int, options: Any) -> Mix | None:
    """Draw a batch's `Mix`; None if mixup and cutmix are off.

    options: a RunConfig, or an object with its fields mixup, cutmix, mixup_prob and
        mixup_switch_prob
    """
    mixup_alpha = options.mixup
    cutmix_alpha = options.cutmix
    if mixup_alpha <= 0 and cutmix_alpha <= 0:
        return None
    mixing_key, cutmix_key, share_key, center_key = jax.random.split(key, 4)
    cutmix_probability = float(cutmix_alpha > 0)
    if mixup_alpha > 0 and cutmix_alpha > 0:
        cutmix_probability = options.mixup_switch_prob
    is_cutmix = jax.random.uniform(cutmix_key) < cutmix_probability
    alpha = jnp.where(is_cutmix, jnp.float32(cutmix_alpha), jnp.float32(mixup_alpha))
    is_mixed = jax.random.uniform(mixing_key) < options.mixup_prob
    drawn_share = jnp.where(is_mixed, draw_beta(share_key, alpha), 1.0)
    center = jax.random.randint(center_key, (2,), 0, jnp.array([height, width]))
    box, share_outside_box = cutmix_box(drawn_share, center, height, width)
    own_share = jnp.where(is_cutmix, share_outside_box, drawn_share)
    return Mix(own_share, box, is_cutmix)


def draw_beta(key: jax.Array, alpha: jax.Array) -> jax.Array:
    """Draw from Beta(alpha, alpha) for alpha > 0."""
    # Two gamma variables, with all tries at once: `jax.random.beta` repeats tries in a
    # loop, and a GPU waits for the host before every turn of a loop of unknown length.
    normal_key, accept_key, boost_key = jax.random.split(key, 3)
    # Letters of Marsaglia and Tsang, 2000, "A simple method for generating gamma
    # variables". `1 -` keeps 0 out, whose logarithm is infinite.
    x = jax.random.normal(normal_key, (2, BETA_TRIES))
    u = 1 - jax.random.uniform(accept_key, (2, BETA_TRIES))
    d = alpha + 2 / 3  # for the shape alpha + 1, above 1 as the method asks
    v = (1 + x / jnp.sqrt(9 * d)) ** 3
    positive_v = jnp.where(v > 0, v, 1)
    log_v = jnp.log(positive_v)
    log_limit = x**2 / 2 + d * (1 - positive_v + log_v)
    is_accepted = (v > 0) & (jnp.log(u) < log_limit)
    first_accepted = jnp.argmax(is_accepted, axis=1, keepdims=True)
    # A gamma variable of shape alpha + 1 times U^(1 / alpha) has shape alpha.
    # Logarithms, because variables of a small alpha would vanish.
    log_boost = jnp.log(1 - jax.random.uniform(boost_key, (2,))) / alpha
    log_gamma = jnp.take_along_axis(log_v, first_accepted, axis=1)[:, 0] + log_boost
    # g / (g + h) of both variables, in which their factor d cancels.
    return jax.nn.sigmoid(log_gamma[0] - log_gamma[1])


def cutmix_box(
    drawn_share: jax.Array, center: jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """Box (top, bottom, left, right), and the image's share outside it.

    Before the image's edges clip it, the box around `center` (row, column) leaves out
    `drawn_share` of the area.
    """
    sides = jnp.array([height, width], jnp.int32)
    box_sides = sides.astype(jnp.float32) * jnp.sqrt(1 - drawn_share)
    half_sides = box_sides.astype(jnp.int32) // 2
    top_left = jnp.clip(center - half_sides, 0, sides)
    bottom_right = jnp.clip(center + half_sides, 0, sides)
    box_area = jnp.prod(bottom_right - top_left)
    box = jnp.stack([top_left[0], bottom_right[0], top_left[1], bottom_right[1]])
    return box, 1 - box_area.astype(jnp.float32) / (height * width)


def mix_batch(mix: Mix, batch: Batch, partners: Batch) -> Batch:
    """Mix partners into images [B, H, W, 3] and targets [B, classes].

    Normalized images keep their dtype, and are mixed in float32.

    partners: the reversed global batch
    """
    images, targets = batch
    partner_images, partner_targets = partners
    height, width = images.shape[1:3]
    rows = jnp.arange(height, dtype=jnp.int32)[:, None]
    columns = jnp.arange(width, dtype=jnp.int32)[None, :]
    top, bottom, left, right = mix.box
    is_row_inside = (rows >= top) & (rows < bottom)
    is_inside = is_row_inside & ((columns >= left) & (columns < right))
    cut_share = 1 - is_inside.astype(jnp.float32)  # 0 in the partner's box, else 1
    pixel_share = jnp.where(mix.is_cutmix, cut_share, mix.own_share)  # [H, W]
    float_images = images.astype(jnp.float32)
    float_partners = partner_images.astype(jnp.float32)
    value_share = pixel_share[None, :, :, None]
    mixed_images = value_share * float_images + (1 - value_share) * float_partners
    mixed_targets = mix.own_share * targets + (1 - mix.own_share) * partner_targets
    return mixed_images.astype(images.dtype), mixed_targets
