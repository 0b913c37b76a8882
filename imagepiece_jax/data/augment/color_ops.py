"""RandAugment's color operations as lookup tables.

Eight of its operations change every value of a channel in the same way: each image gets
a table of 256 new values a channel, and one lookup does them all. Integers and rounding
are those of Pillow's ImageOps and ImageEnhance.
"""

import functools

import jax
import jax.numpy as jnp

from imagepiece_jax.data.augment.policy import OPS

# Weights of red, green and blue, in 65,536ths (ITU-R 601, as in Pillow).
LUMINANCE = (19595, 38470, 7471)


def luminance(images):
    """Gray levels. uint8 [B, H, W, 3] -> int32 [B, H, W]."""
    red, green, blue = (images[..., c].astype(jnp.int32) for c in range(3))
    total = LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue
    return (total + 0x8000) >> 16


def factor(magnitude, sign):
    """Strength of a blend with a degenerate image: 1 is the image itself. float32.

    Of color, contrast, brightness and sharpness: 1.81 or .19 at magnitude 9.
    """
    return jnp.maximum(0.1, 1 + sign * 0.9 * magnitude / 10)


def blend(degenerate, image, share):
    """degenerate + share * (image - degenerate), cut off to a level as Pillow does.

    Integer arrays and a float32 share that broadcast; int32 0 .. 255.
    """
    start = degenerate.astype(jnp.float32)
    value = start + share * (image.astype(jnp.float32) - start)
    return jnp.clip(value, 0, 255).astype(jnp.int32)


def tables(images, op, magnitude, sign):
    """New value of every old one; the values themselves for other operations.

    images: uint8 [B, H, W, 3]; op (index in OPS, or -1), magnitude, sign: [B].
    -> uint8 [B, 3, 256]
    """
    value = jnp.arange(256, dtype=jnp.int32)[None, None, :]
    m, direction = magnitude[:, None, None], sign[:, None, None]
    share = factor(m, direction)
    kept_bits = 4 - (4 * m / 10).astype(jnp.int32)
    threshold = 256 - jnp.minimum(256, (256 * m / 10).astype(jnp.int32))
    added = jnp.minimum(128, (110 * m / 10).astype(jnp.int32))
    made = {
        "AutoContrast": _autocontrast(images, value),
        "Equalize": _equalize(_histograms(images, op == OPS.index("Equalize"))),
        "Invert": 255 - value,
        "Posterize": (value >> (8 - kept_bits)) << (8 - kept_bits),
        "Solarize": jnp.where(value < threshold, value, 255 - value),
        "SolarizeAdd": jnp.where(value < 128, jnp.minimum(255, value + added), value),
        "Contrast": blend(_mean(images)[:, None, None], value, share),
        "Brightness": blend(jnp.zeros_like(value), value, share),
    }
    shape = (images.shape[0], 3, 256)
    choices = jnp.stack([jnp.broadcast_to(v, shape) for v in (value, *made.values())])
    chosen = [op == OPS.index(name) for name in made]
    takes = jnp.stack([~functools.reduce(jnp.logical_or, chosen), *chosen])
    # A product with zeros and a one: a compiler folds a chain of selects into the
    # lookup and makes the table anew for every pixel.
    table = jnp.einsum(
        "kb,kbcv->bcv", takes.astype(jnp.float32), choices.astype(jnp.float32)
    )
    return table.astype(jnp.uint8)


def look_up(images, table):
    """Replace every value by the one in its image's and channel's table.

    images: uint8 [B, H, W, 3]; table: uint8 [B, 3, 256]. -> uint8 [B, H, W, 3]
    """
    return table.reshape(-1).at[_bins(images)].get(mode="promise_in_bounds")


def _bins(images):
    """Index of every value in flattened tables [B, 3, 256]. int32 [B, H, W, 3]."""
    image = jax.lax.broadcasted_iota(jnp.int32, images.shape, 0)
    channel = jax.lax.broadcasted_iota(jnp.int32, images.shape, 3)
    return (image * 3 + channel) * 256 + images.astype(jnp.int32)


def _mean(images):
    """Rounded mean gray level of each image. -> int32 [B].

    Integers throughout: exact up to 2,000 x 2,000 pixels.
    """
    pixels = images.shape[1] * images.shape[2]
    return (2 * luminance(images).sum((1, 2)) + pixels) // (2 * pixels)


def _autocontrast(images, value):
    """Stretch each channel from its darkest and brightest value. -> [B, 3, 256]."""
    low = images.min((1, 2)).astype(jnp.int32)[:, :, None]
    span = images.max((1, 2)).astype(jnp.int32)[:, :, None] - low
    stretched = jnp.clip((value - low) * 255 // jnp.maximum(span, 1), 0, 255)
    return jnp.where(span > 0, stretched, value)


def _histograms(images, chosen):
    """Number of pixels of each value: int32 [B, 3, 256]; zeros for images not chosen.

    One scatter that drops what is not chosen: a histogram of every image would be the
    most expensive part of the augmentation, and one in thirty is needed. Integer sums
    do not depend on their order.
    """
    count = images.shape[0] * 3 * 256
    bins = jnp.where(chosen[:, None, None, None], _bins(images), count)
    empty = jnp.zeros(count, jnp.int32)
    counts = empty.at[bins.reshape(-1)].add(1, mode="drop")
    return counts.reshape(images.shape[0], 3, 256)


def _equalize(histograms):
    """Spread values so that as many pixels lie between any two. [B, 3, 256] -> same.

    A channel whose pixels, those of its brightest value left out, are fewer than 255
    stays as it is.
    """
    value = jnp.arange(256, dtype=jnp.int32)[None, None, :]
    total = histograms.sum(-1, keepdims=True)
    brightest = jnp.max(jnp.where(histograms > 0, value, 0), -1, keepdims=True)
    last = jnp.take_along_axis(histograms, brightest, axis=-1)
    step = (total - last) // 255
    below = jnp.cumsum(histograms, -1) - histograms
    spread = (step // 2 + below) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(spread, 255), value)
