"""Mixup, cutmix and label smoothing on the device, one draw per batch (as in DeiT).

Pure functions; all draws come from the key that `training.train_step` passes in.
"""

import jax
import jax.numpy as jnp
from flax import struct

from imagepiece_jax.common.rng import integers, normal, uniform

TRIES = 8  # of which one at least is accepted, but for 1 draw in 10^10


def soft_targets(labels, num_classes, smoothing):
    """Smoothed one-hot rows that sum to 1, float32. [...] int -> [..., num_classes]."""
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return one_hot * (1 - smoothing) + smoothing / num_classes


@struct.dataclass
class Mix:
    """How each image of a batch is mixed with its partner: one draw for all of them."""

    lam: jax.Array  # [] float32, share of the image's own target
    box: jax.Array  # [4] int32, the partner's top, bottom, left, right if `cut`
    cut: jax.Array  # [] bool, cutmix; else mixup


def draw(key, height, width, *, mixup, cutmix, prob, switch_prob):
    """Draw the `Mix` of a batch of height x width images; None where both are off.

    mixup, cutmix: the alphas of Beta(alpha, alpha), 0 switches one off
    prob: probability that the batch is mixed at all
    switch_prob: probability of cutmix where both are on
    """
    if mixup <= 0 and cutmix <= 0:
        return None
    mixed_key, cut_key, lam_key, center_key = jax.random.split(key, 4)
    if mixup > 0 and cutmix > 0:
        share = switch_prob
    else:
        share = float(cutmix > 0)
    cut = uniform(cut_key) < share
    alpha = jnp.where(cut, jnp.float32(cutmix), jnp.float32(mixup))
    mixed = uniform(mixed_key) < prob
    lam = jnp.where(mixed, beta(lam_key, alpha), 1.0)
    center = integers(center_key, (2,), 0, jnp.array([height, width]))
    box, box_lam = cutmix_box(lam, center, height, width)
    return Mix(lam=jnp.where(cut, box_lam, lam), box=box, cut=cut)


def beta(key, alpha):
    """One draw of Beta(alpha, alpha) for a number alpha > 0, float32 [].

    Two gamma variables make it, with all tries at once: `jax.random.beta` repeats them
    in a loop, and a GPU waits for the host before each turn of a loop whose length it
    does not know.
    Source: Marsaglia and Tsang, 2000, "A simple method for generating gamma variables".
    """
    normal_key, accept_key, boost_key = jax.random.split(key, 3)
    x = normal(normal_key, (2, TRIES))
    u = 1 - uniform(accept_key, (2, TRIES))
    d = alpha + 2 / 3  # for the shape alpha + 1, which is above 1 as the method asks
    v = (1 + x / jnp.sqrt(9 * d)) ** 3
    positive = jnp.where(v > 0, v, 1)
    log_v = jnp.log(positive)
    limit = x**2 / 2 + d * (1 - positive + log_v)
    accepted = (v > 0) & (jnp.log(u) < limit)
    first = jnp.argmax(accepted, axis=1, keepdims=True)
    # A variable of shape alpha + 1 times U^(1 / alpha) is one of shape alpha. In
    # logarithms, as those of a small alpha would vanish.
    boost = jnp.log(1 - uniform(boost_key, (2,))) / alpha
    log_gamma = jnp.take_along_axis(log_v, first, axis=1)[:, 0] + boost
    return jax.nn.sigmoid(log_gamma[0] - log_gamma[1])


def cutmix_box(lam, center, height, width):
    """Box [4] (top, bottom, left, right) and the lam that its clipped area stands for.

    The box has 1 - lam of the area around `center` (row, column) before the image's
    edges clip it.
    """
    side = jnp.array([height, width], jnp.int32)
    half = (side.astype(jnp.float32) * jnp.sqrt(1 - lam)).astype(jnp.int32) // 2
    low = jnp.clip(center - half, 0, side)
    high = jnp.clip(center + half, 0, side)
    area = jnp.prod(high - low)
    box = jnp.stack([low[0], high[0], low[1], high[1]])
    return box, 1 - area.astype(jnp.float32) / (height * width)


def apply(mix, images, targets, partner_images, partner_targets):
    """Mix partners into images and targets.

    images: [B, H, W, 3], normalized floats; they keep their dtype, the arithmetic is
        float32
    targets: [B, C]
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
    mixed = _blend(share[None, :, :, None], firsts, partners)
    mixed = mixed.astype(images.dtype)
    return mixed, _blend(mix.lam, targets, partner_targets)


def _blend(share, first, second):
    """The mean of two arrays in which the first has this share."""
    return share * first + (1 - share) * second
