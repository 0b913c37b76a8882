"""Mixup, cutmix and label smoothing on the device, one draw per batch (as in DeiT).

Functions are pure: all draws come from the key of `training.train_step`.
"""

import jax
import jax.numpy as jnp
from flax import struct

from imagepiece_jax.common.rng import draw_integers, draw_normal, draw_uniform

BETA_TRIES = 8  # at least one try is accepted, except in 1 draw of 10^10


def soft_targets(labels, num_classes, smoothing):
    """Smoothed one-hot rows that sum to 1. [...] int -> float32 [..., num_classes]."""
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return one_hot * (1 - smoothing) + smoothing / num_classes


@struct.dataclass
class Mix:
    """One draw for all images of a batch: how they mix with their partners."""

    lam: jax.Array  # [] float32, weight of the image's own target
    box: jax.Array  # [4] int32, top, bottom, left, right of the partner's part if `cut`
    cut: jax.Array  # [] bool, cutmix; else mixup


def draw_mix(key, height, width, *, mixup, cutmix, prob, switch_prob):
    """Draw a batch's `Mix`; None if mixup and cutmix are off.

    mixup, cutmix: alphas of Beta(alpha, alpha); 0: off
    prob: probability of mixing the batch
    switch_prob: probability of cutmix if both are on
    """
    if mixup <= 0 and cutmix <= 0:
        return None
    mixed_key, cut_key, lam_key, center_key = jax.random.split(key, 4)
    if mixup > 0 and cutmix > 0:
        share = switch_prob
    else:
        share = float(cutmix > 0)
    cut = draw_uniform(cut_key) < share
    alpha = jnp.where(cut, jnp.float32(cutmix), jnp.float32(mixup))
    mixed = draw_uniform(mixed_key) < prob
    lam = jnp.where(mixed, draw_beta(lam_key, alpha), 1.0)
    center = draw_integers(center_key, (2,), 0, jnp.array([height, width]))
    box, box_lam = cutmix_box(lam, center, height, width)
    return Mix(lam=jnp.where(cut, box_lam, lam), box=box, cut=cut)


def draw_beta(key, alpha):
    """Draw from Beta(alpha, alpha) for alpha > 0, float32 []."""
    # Two gamma variables, with all tries at once: `jax.random.beta` repeats tries in a
    # loop, and a GPU waits for the host before every turn of a loop of unknown length.
    normal_key, accept_key, boost_key = jax.random.split(key, 3)
    x = draw_normal(normal_key, (2, BETA_TRIES))
    u = 1 - draw_uniform(accept_key, (2, BETA_TRIES))
    # Marsaglia and Tsang, 2000, "A simple method for generating gamma variables".
    d = alpha + 2 / 3  # for the shape alpha + 1, above 1 as the method asks
    v = (1 + x / jnp.sqrt(9 * d)) ** 3
    positive = jnp.where(v > 0, v, 1)
    log_v = jnp.log(positive)
    limit = x**2 / 2 + d * (1 - positive + log_v)
    accepted = (v > 0) & (jnp.log(u) < limit)
    first = jnp.argmax(accepted, axis=1, keepdims=True)
    # A gamma variable of shape alpha + 1 times U^(1 / alpha) has shape alpha.
    # Logarithms, because variables of a small alpha would vanish.
    boost = jnp.log(1 - draw_uniform(boost_key, (2,))) / alpha
    log_gamma = jnp.take_along_axis(log_v, first, axis=1)[:, 0] + boost
    return jax.nn.sigmoid(log_gamma[0] - log_gamma[1])


def cutmix_box(lam, center, height, width):
    """Box [4] (top, bottom, left, right), and the lam of its clipped area.

    Before the image's edges clip it, the box has 1 - lam of the area, around `center`
    (row, column).
    """
    side = jnp.array([height, width], jnp.int32)
    half = (side.astype(jnp.float32) * jnp.sqrt(1 - lam)).astype(jnp.int32) // 2
    low = jnp.clip(center - half, 0, side)
    high = jnp.clip(center + half, 0, side)
    area = jnp.prod(high - low)
    box = jnp.stack([low[0], high[0], low[1], high[1]])
    return box, 1 - area.astype(jnp.float32) / (height * width)


def mix_batch(mix, images, targets, partner_images, partner_targets):
    """Mix partners into images [B, H, W, 3] and targets [B, C].

    images: normalized floats; they keep their dtype, the arithmetic is float32
    partner_images, partner_targets: the reversed global batch
    """
    height, width = images.shape[1:3]
    row = jnp.arange(height, dtype=jnp.int32)[:, None]
    column = jnp.arange(width, dtype=jnp.int32)[None, :]
    top, bottom, left, right = mix.box
    inside = ((row >= top) & (row < bottom)) & ((column >= left) & (column < right))
    share = jnp.where(mix.cut, 1 - inside.astype(jnp.float32), mix.lam)
    firsts = images.astype(jnp.float32)
    partners = partner_images.astype(jnp.float32)
    mixed = _weighted_mean(share[None, :, :, None], firsts, partners)
    mixed = mixed.astype(images.dtype)
    return mixed, _weighted_mean(mix.lam, targets, partner_targets)


def _weighted_mean(share, first, second):
    return share * first + (1 - share) * second
