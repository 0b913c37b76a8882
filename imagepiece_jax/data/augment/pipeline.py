"""Augmentation of a training batch inside the compiled step, in DeiT's order.

The host crops and flips first (`random_crop`). RandAugment, normalization and random
erasing follow here, then mixup and cutmix (`mixup`). Every image draws from its own
key, so its draws do not depend on the rest of the batch.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from imagepiece_jax.data.augment.randaugment import fill_color, randaugment
from imagepiece_jax.data.config import AugmentConfig
from imagepiece_jax.data.normalize import normalize

ERASING_TRIES = 10
ERASED_AREA = (0.02, 1 / 3)  # share of the image
ERASED_ASPECT = (0.3, 1 / 0.3)  # height / width


def augment_batch(
    images: jax.Array,
    augment: AugmentConfig,
    mean: Sequence[float],
    std: Sequence[float],
    draw_keys: Callable[[], jax.Array],
) -> jax.Array:
    """Augment and normalize a batch of uint8 pixels [B, H, W, 3], before mixing.

    mean, std: the model's, see `normalize`; gaps in moved images get the mean's color
    draw_keys: makes a key per image; called if any augmentation is on
    """

    # A key per augmentation, [B] each; the first two are unused, because runs of
    # today draw from the others. A new augmentation takes a fifth: no draw depends on
    # the count.
    @functools.cache
    def augmentation_keys():
        split_each_key = jax.vmap(lambda key: jax.random.split(key, 4), out_axes=1)
        return [*split_each_key(draw_keys())]

    if augment.layers:
        images = randaugment(images, augmentation_keys()[2], augment, fill_color(mean))
    normalized = normalize(images, mean, std)
    if augment.erase_prob > 0:
        return erase_randomly(normalized, augmentation_keys()[3], augment.erase_prob)
    return normalized


def erase_randomly(images: jax.Array, keys: jax.Array, probability: float) -> jax.Array:
    """Fill a box of every normalized image with noise, with this probability.

    Source: Zhong et al., 2020, as in DeiT.
    """
    height, width = images.shape[1:3]  # of [B, H, W, 3]

    def erase_box(image, key):
        box_key, noise_key = jax.random.split(key)
        box = draw_erased_box(box_key, height, width, probability)
        top, left, box_height, box_width = box
        rows = jnp.arange(height, dtype=jnp.int32)[:, None]
        columns = jnp.arange(width, dtype=jnp.int32)[None, :]
        is_inside = (rows >= top) & (rows < top + box_height)
        is_inside &= (columns >= left) & (columns < left + box_width)
        noise = jax.random.normal(noise_key, image.shape)  # per pixel and channel
        return jnp.where(is_inside[:, :, None], noise, image)

    return jax.vmap(erase_box)(images, keys)


def draw_erased_box(
    key: jax.Array, height: int, width: int, probability: float
) -> jax.Array:
    """Draw a box, int32 (top, left, height, width); size 0 erases nothing."""
    probability_key, try_key, place_key = jax.random.split(key, 3)
    area_draw, aspect_draw = jax.random.uniform(try_key, (2, ERASING_TRIES))
    least_log_aspect, most_log_aspect = map(math.log, ERASED_ASPECT)
    smallest_share, largest_share = ERASED_AREA
    area_share = smallest_share + area_draw * (largest_share - smallest_share)
    # The area is uniform, and so is the logarithm of the aspect ratio.
    tried_areas = height * width * area_share
    log_aspect_range = most_log_aspect - least_log_aspect
    tried_aspects = jnp.exp(least_log_aspect + aspect_draw * log_aspect_range)
    tried_heights = jnp.round(jnp.sqrt(tried_areas * tried_aspects))
    tried_widths = jnp.round(jnp.sqrt(tried_areas / tried_aspects))
    # The first try that is smaller than the image in both directions counts.
    fits = (tried_heights < height) & (tried_widths < width)
    first_fit = jnp.argmax(fits)
    is_drawn = jax.random.uniform(probability_key) < probability
    is_erased = is_drawn & fits[first_fit]  # `argmax` is 0 if no try fits
    box_height = jnp.where(is_erased, tried_heights[first_fit], 0)
    box_width = jnp.where(is_erased, tried_widths[first_fit], 0)
    top_draw, left_draw = jax.random.uniform(place_key, (2,))
    top = jnp.floor(top_draw * (height - box_height + 1))
    left = jnp.floor(left_draw * (width - box_width + 1))
    return jnp.stack([top, left, box_height, box_width]).astype(jnp.int32)
