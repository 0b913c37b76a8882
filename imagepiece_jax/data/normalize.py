"""Normalization of pixels, with the mean and deviation that a model was trained with.

Both are of pixels in [0, 1], one number a channel. There is no default here: each model
has its own (`ViT.mean`, `ViT.std`).
"""

import jax
import jax.numpy as jnp

from imagepiece_jax.errors import InputError


def normalize(images: jax.Array, mean, std) -> jax.Array:
    """Subtract `mean`, divide by `std`. uint8 [..., 3] -> float32 [..., 3].

    InputError for floats, of which nobody knows whether they reach to 1 or to 255, and
    for other channels.
    """
    if images.dtype != jnp.uint8 or images.shape[-1:] != (3,):
        raise InputError(
            f"images are {images.dtype} {list(images.shape)}; allowed are pixels, "
            "uint8 [..., 3]"
        )
    mean, std = _channels(images, mean), _channels(images, std)
    return (images.astype(jnp.float32) / 255 - mean) / std


def to_pixels(images: jax.Array, mean, std) -> jax.Array:
    """Inverse of `normalize`, rounded and clipped to 0 .. 255. -> uint8 [..., 3]."""
    mean, std = _channels(images, mean), _channels(images, std)
    values = 255 * (images.astype(jnp.float32) * std + mean)
    return jnp.round(jnp.clip(values, 0, 255)).astype(jnp.uint8)


def _channels(images, values):
    shape = (1,) * (images.ndim - 1) + (3,)
    return jnp.asarray(values, jnp.float32).reshape(shape)
