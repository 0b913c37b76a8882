"""Augmentation of a training batch inside the compiled step.

DeiT's order: RandAugment, normalization, random erasing; the host has cropped and
flipped before (`random_crop`), mixup and cutmix (`mixup`) come after. All draws of an
image come from its own key, so they do not depend on the rest of the batch.
"""

import math

import jax
import jax.numpy as jnp

from imagepiece_jax.common.rng import normal, uniform
from imagepiece_jax.data.augment.randaugment import fill_color, randaugment
from imagepiece_jax.data.normalize import normalize

TRIES = 10
ERASED_AREA = (0.02, 1 / 3)  # share of the image
ERASED_ASPECT = (0.3, 1 / 0.3)  # height / width


def augment_batch(images, augment, mean, std, keys=None):
    """Augment and normalize a batch: all that precedes mixing.

    images: uint8 [B, S, S, 3]
    augment: an AugmentConfig
    mean, std: of the model, see `normalize`; a moved image leaves the mean's color
    keys: [B], one per image, or None where nothing is drawn
    Returns float32 [B, S, S, 3].
    """
    if keys is None:
        return normalize(images, mean, std)
    # The first two of four keys have no use, but a run's draws depend on the number.
    _, _, op_keys, erase_keys = jax.vmap(
        lambda key: jax.random.split(key, 4), out_axes=1
    )(keys)
    if augment.layers:
        images = randaugment(images, op_keys, augment, fill_color(mean))
    images = normalize(images, mean, std)
    if augment.erase_prob > 0:
        images = random_erasing(images, erase_keys, augment.erase_prob)
    return images


def random_erasing(images, keys, prob):
    """Fill a box of each image with standard normal noise, with probability `prob`.

    The noise is drawn for each pixel and channel.

    images: float [B, H, W, 3], normalized
    keys: [B]
    Source: Zhong et al., 2020, as DeiT has it.
    """
    height, width = images.shape[1:3]

    def of_image(image, key):
        box_key, noise_key = jax.random.split(key)
        top, left, tall, wide = erased_box(box_key, height, width, prob)
        row = jnp.arange(height, dtype=jnp.int32)[:, None]
        column = jnp.arange(width, dtype=jnp.int32)[None, :]
        inside = (row >= top) & (row < top + tall)
        inside &= (column >= left) & (column < left + wide)
        noise = normal(noise_key, image.shape)
        return jnp.where(inside[:, :, None], noise, image)

    return jax.vmap(of_image)(images, keys)


def erased_box(key, height, width, prob):
    """Draw a box (top, left, height, width), int32; of size 0 nothing is erased.

    Area is uniform in ERASED_AREA, the logarithm of the aspect in ERASED_ASPECT; of ten
    tries the first that is smaller than the image in both directions.
    """
    prob_key, try_key, place_key = jax.random.split(key, 3)
    share, ratio = uniform(try_key, (2, TRIES))
    low, high = map(math.log, ERASED_ASPECT)
    smallest, largest = ERASED_AREA
    area = smallest + share * (largest - smallest)
    pixels = height * width * area
    ratio = jnp.exp(low + ratio * (high - low))
    tall = jnp.round(jnp.sqrt(pixels * ratio))
    wide = jnp.round(jnp.sqrt(pixels / ratio))
    fits = (tall < height) & (wide < width)
    first = jnp.argmax(fits)
    erases = (uniform(prob_key) < prob) & fits[first]
    tall = jnp.where(erases, tall[first], 0)
    wide = jnp.where(erases, wide[first], 0)
    down, right = uniform(place_key, (2,))
    top = jnp.floor(down * (height - tall + 1))
    left = jnp.floor(right * (width - wide + 1))
    return jnp.stack([top, left, tall, wide]).astype(jnp.int32)
