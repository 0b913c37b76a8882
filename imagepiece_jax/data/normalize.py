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

from imagepiece_jax.common.checks import check_range, refuse_any
from imagepiece_jax.common.image_size import ImageSize, image_sides
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
            for channel in channels:  # std is a divisor, so it is not 0
                check_range(name, channel, 0, 1, above=0 if name == "std" else None)
            object.__setattr__(self, name, tuple(map(float, channels)))


def normalize(
    images: jax.Array | np.ndarray, mean: Channels, std: Channels
) -> jax.Array:
    """Subtract `mean` from uint8 pixels in [0, 1], divide by `std`."""
    # Floats are refused: they may reach to 1 or to 255.
    if images.dtype != jnp.uint8 or images.shape[-1:] != (3,):
        kind = f"{images.dtype} {list(images.shape)}"
        raise InputError(f"images is {kind}; it must be pixels, uint8 [..., 3]")
    normalization = Normalization(mean, std)
    channel_shape = (1,) * (images.ndim - 1) + (3,)  # of images [..., 3]
    channel_mean = np.array(normalization.mean, np.float32).reshape(channel_shape)
    channel_std = np.array(normalization.std, np.float32).reshape(channel_shape)
    pixels = jnp.asarray(images, jnp.float32)
    return (pixels / np.float32(255) - channel_mean) / channel_std


def check_images(
    images: Any,
    image_size: ImageSize | None = None,
    takes_floats: bool = True,
    takes_pixels: bool = False,
) -> None:
    """Check that images are a batch [B, H, W, 3], B > 0; image_size None: of any size.

    takes_pixels: whether uint8 is allowed, to be normalized later
    """
    shape = images.shape
    dtype = images.dtype
    # A list times False is empty.
    kinds = ["normalized floats"] * takes_floats + ["uint8"] * takes_pixels
    # Other integers would pass through a model, and mean nothing there.
    is_allowed_float = takes_floats and jnp.issubdtype(dtype, jnp.floating)
    is_allowed = is_allowed_float or (takes_pixels and dtype == jnp.uint8)
    sides = shape[1:3] if image_size is None else image_sides(image_size)
    is_batch = len(shape) == 4 and shape[0] > 0 and shape[1:] == (*sides, 3)
    sides_text = "H, W" if image_size is None else "{}, {}".format(*sides)
    refuse_any(
        (not is_allowed, f"images is of type {dtype}; it must be {' or '.join(kinds)}"),
        (not is_batch, f"images is of shape {shape}; it must be [B, {sides_text}, 3]"),
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
    is_on_host = isinstance(images, np.ndarray)
    if isinstance(images, jax.Array) and not isinstance(images, jax.core.Tracer):
        is_local = images.is_fully_addressable  # not spread over processes
        platforms = {device.platform for device in images.devices()}
        is_on_host = is_local and platforms == {"cpu"}
    if not is_on_host or not jnp.issubdtype(images.dtype, jnp.floating):
        return False
    # A sample decides: about 8 images, 32 rows and 32 columns, with all channels.
    slices = []
    for length, num_sampled in zip(images.shape, (8, 32, 32), strict=False):
        slices.append(slice(None, None, max(1, length // num_sampled)))
    sample = np.asarray(images)[tuple(slices)].astype(np.float32)
    lowest = sample.min(initial=np.inf)
    highest = sample.max(initial=-np.inf)
    if lowest >= highest:  # constant or empty; a NaN compares as False, and goes on
        return False
    black = (0 - np.asarray(mean)) / std
    white = (1 - np.asarray(mean)) / std
    largest_normalized = max(abs(black).max(), abs(white).max())
    if np.isnan(lowest):
        fault = "not all numbers: some are NaN"
    elif max(-lowest, highest) > max(10, 2 * largest_normalized):  # usual: up to 3
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
