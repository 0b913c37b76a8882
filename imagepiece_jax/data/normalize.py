"""Normalization by a model's mean and standard deviation.

Both refer to pixels in [0, 1], one value per channel. There is no default: every model
has its own (`ViTConfig.mean`, `ViTConfig.std`).
"""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.image_size import ImageSize, image_sides, size_text
from imagepiece_jax.errors import InputError

Channels = Sequence[float]  # a number for each of three channels
PixelImages = UInt8[Array, "batch height width 3"]
NormalizedImages = Float[Array, "batch height width 3"]


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Mean to subtract from pixels in [0, 1], and std to divide by."""

    mean: Channels
    std: Channels

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            channels = tuple(getattr(self, name))
            if len(channels) != 3:
                raise InputError(f"{name} is {channels}; it must be three numbers")
            for channel in channels:
                check_range(name, channel, 0, 1)
            object.__setattr__(self, name, tuple(map(float, channels)))
        for channel in self.std:
            check_range("std", channel, above=0)


def is_array(images: Any) -> bool:
    """Whether `images` is a NumPy or JAX array; a torch tensor's dtype is torch's."""
    return isinstance(getattr(images, "dtype", None), np.dtype)


def to_native_order(array: Any) -> Any:
    """Convert to this machine's byte order: JAX rejects any other."""
    if not isinstance(array, np.ndarray) or array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("="))


def normalize(
    images: jax.Array | np.ndarray, mean: Channels, std: Channels
) -> jax.Array:
    """Subtract `mean` from uint8 pixels, divide by `std`.

    Raises InputError for floats, other channel counts, and mean and std of [0, 255].
    """
    # Floats are refused: they may reach to 1 or to 255.
    if images.dtype != jnp.uint8 or images.shape[-1:] != (3,):
        raise InputError(
            f"images is {images.dtype} {list(images.shape)}; it must be pixels, uint8 "
            "[..., 3]"
        )
    normalization = Normalization(mean, std)
    shape = (1,) * (images.ndim - 1) + (3,)
    arguments: Any = [images, np.float32(255)]
    for channel_values in (normalization.mean, normalization.std):
        arguments.append(np.array(channel_values, np.float32).reshape(shape))
    if not isinstance(images, jax.core.Tracer):  # a transfer guard allows device_put
        arguments = jax.device_put(arguments)
    pixels, white_level, channel_mean, channel_std = arguments
    return (pixels.astype(jnp.float32) / white_level - channel_mean) / channel_std


def as_normalized(images: jax.Array, mean: Channels, std: Channels) -> jax.Array:
    """`normalize` pixels; floats are normalized already and pass unchanged."""
    if images.dtype != jnp.uint8:
        return images
    return normalize(images, mean, std)


def check_images(
    images: Any,
    image_size: ImageSize | None = None,
    takes_floats: bool = True,
    takes_pixels: bool = False,
) -> None:
    """Check that images are a batch [B, H, W, 3], B > 0.

    image_size: None: any
    takes_floats: False for a program for pixels
    takes_pixels: whether uint8 is allowed, to be normalized later
    """
    allowed_types = "floats, as imagepiece_jax.normalize makes them"
    if takes_pixels:
        allowed_types += ", or uint8"
    if not takes_floats:
        allowed_types = "uint8, because the program was made with pixels=True"
    shape = images.shape
    dtype = images.dtype
    are_floats = takes_floats and jnp.issubdtype(dtype, jnp.floating)
    # Other integers would pass through a model, and mean nothing there.
    if not are_floats and not (takes_pixels and dtype == jnp.uint8):
        raise InputError(f"images is of type {dtype}; it must be {allowed_types}")
    sides = image_size and image_sides(image_size)
    is_batch = len(shape) == 4 and shape[0] > 0 and shape[3] == 3
    if not is_batch or (sides and shape[1:3] != sides):
        raise InputError(
            f"images is of shape {shape}; it must be [B, H, W, 3], one or more images "
            f"of {size_text(sides) if sides else 'any size'}"
        )


def warn_if_unnormalized(
    images: Any, mean: Channels, std: Channels, stacklevel: int = 2
) -> bool:
    """Warn if a float array's range shows pixels of 0..255 or 0..1, or NaN.

    Constant and traced arrays, and arrays on accelerators, are not checked.

    stacklevel: of the line that the warning names, 1 for the caller
    Returns whether the range was judged.
    """
    # Unnormalized floats pass through a model, but their logits mean nothing. On an
    # accelerator the check would wait for the array.
    if not _is_on_host(images) or not jnp.issubdtype(images.dtype, jnp.floating):
        return False
    slices = []  # a sample of the pixels decides
    for length, num_sampled in zip(images.shape, (8, 32, 32), strict=False):
        slices.append(slice(None, None, max(1, length // num_sampled)))
    sample = np.asarray(images)[tuple(slices)].astype(np.float32)
    lowest = sample.min(initial=np.inf)
    highest = sample.max(initial=-np.inf)
    if lowest >= highest:
        return False
    black = (0 - np.asarray(mean)) / std
    white = (1 - np.asarray(mean)) / std
    largest_deviation = max(abs(black).max(), abs(white).max())
    if np.isnan(lowest):
        fault = "not all numbers: some are NaN"
    elif max(-lowest, highest) > max(10, 2 * largest_deviation):
        fault = "far from 0, as pixels of 0 .. 255"
    elif lowest >= 0 and highest <= 1 and black.min() < 0:
        fault = "all from 0 to 1, as pixels before normalization"
    else:
        return True
    warnings.warn(
        f"the values of images are {fault}; allowed: images normalized by the "
        f"model's mean {mean} and std {std} (imagepiece_jax.normalize)",
        stacklevel=stacklevel + 1,
    )
    return True


def _is_on_host(images):
    """Whether an array is in this process's memory."""
    if isinstance(images, jax.Array) and not isinstance(images, jax.core.Tracer):
        is_local = images.is_fully_addressable  # not spread over processes
        return is_local and all(device.platform == "cpu" for device in images.devices())
    return isinstance(images, np.ndarray)
