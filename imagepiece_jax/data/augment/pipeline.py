"""Augmentation of a training batch inside the compiled step, in DeiT's order.

The host crops and flips first (`random_crop`). RandAugment, normalization and random
erasing follow here, then mixup and cutmix (`mixup`). Every image draws from its own
key, so its draws do not depend on the rest of the batch.
"""

import functools
import math

import jax
import jax.numpy as jnp

from imagepiece_jax.common.rng import draw_normal, draw_uniform
from imagepiece_jax.data.augment.randaugment import fill_color, randaugment
from imagepiece_jax.data.normalize import normalize

ERASING_TRIES = 10
ERASED_AREA = (0.02, 1 / 3)  # share of the image
ERASED_ASPECT = (0.3, 1 / 0.3)  # height / width


def augment_batch(images, augment, mean, std, draw_keys):
    """Augment and normalize a batch, before mixing.

    images: uint8 [B, S, S, 3]
    mean, std: the model's, see `normalize`; gaps in moved images get the mean's color
    draw_keys: function () -> [B], a key per image; called if any augmentation is on
    Returns float32 [B, S, S, 3].
    """

    # A key per augmentation, [B] each; the first two are unused. A new augmentation
    # takes a fifth: the others' draws do not depend on the count.
    @functools.cache
    def keys():
        split = jax.vmap(lambda key: jax.random.split(key, 4), out_axes=1)
        return [*split(draw_keys())]

    if augment.layers:
        images = randaugment(images, keys()[2], augment, fill_color(mean))
    images = normalize(images, mean, std)
    if augment.erase_prob > 0:
        images = erase_randomly(images, keys()[3], augment.erase_prob)
    return images


def erase_randomly(images, keys, prob):
    """Fill a box of the image with noise, with probability `prob`.

    images: float [B, H, W, 3], normalized
    Source: Zhong et al., 2020, as in DeiT.
    """
    height, width = images.shape[1:3]

    def of_image(image, key):
        box_key, noise_key = jax.random.split(key)
        top, left, tall, wide = draw_erased_box(box_key, height, width, prob)
        row = jnp.arange(height, dtype=jnp.int32)[:, None]
        column = jnp.arange(width, dtype=jnp.int32)[None, :]
        inside = (row >= top) & (row < top + tall)
        inside &= (column >= left) & (column < left + wide)
        noise = draw_normal(noise_key, image.shape)  # per pixel and channel
        return jnp.where(inside[:, :, None], noise, image)

    return jax.vmap(of_image)(images, keys)


def draw_erased_box(key, height, width, prob):
    """Draw a box (top, left, height, width), int32; size 0 erases nothing."""
    prob_key, try_key, place_key = jax.random.split(key, 3)
    share, ratio = draw_uniform(try_key, (2, ERASING_TRIES))
    low, high = map(math.log, ERASED_ASPECT)
    smallest, largest = ERASED_AREA
    area = smallest + share * (largest - smallest)
    # The area is uniform, and so is the logarithm of the aspect ratio.
    pixels = height * width * area
    ratio = jnp.exp(low + ratio * (high - low))
    tall = jnp.round(jnp.sqrt(pixels * ratio))
    wide = jnp.round(jnp.sqrt(pixels / ratio))
    # The first try that is smaller than the image in both directions counts.
    fits = (tall < height) & (wide < width)
    first = jnp.argmax(fits)
    erases = (draw_uniform(prob_key) < prob) & fits[first]
    tall = jnp.where(erases, tall[first], 0)
    wide = jnp.where(erases, wide[first], 0)
    down, right = draw_uniform(place_key, (2,))
    top = jnp.floor(down * (height - tall + 1))
    left = jnp.floor(right * (width - wide + 1))
    return jnp.stack([top, left, tall, wide]).astype(jnp.int32)
