"""Normalization of pixels, with the mean and deviation that a model was trained with.

Both are of pixels in [0, 1], one number per channel. There is no default: each model
has its own (`ViTConfig.mean`, `ViTConfig.std`).
"""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.image_size import sides, size_text
from imagepiece_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Normalization:
    """The mean to subtract from pixels in [0, 1], and the std to divide by."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self):
        for name in ("mean", "std"):
            values = tuple(getattr(self, name))
            if len(values) != 3:
                raise InputError(f"{name} is {values}; it must be three numbers")
            for value in values:
                check_range(name, value, 0, 1)
            object.__setattr__(self, name, tuple(map(float, values)))
        for value in self.std:
            check_range("std", value, above=0)


def is_array(images) -> bool:
    """Whether it is an array of NumPy or JAX; torch's tensors have dtypes of torch."""
    return isinstance(getattr(images, "dtype", None), np.dtype)


def native(array):
    """The same numbers in this machine's byte order: JAX takes no other."""
    if getattr(array.dtype, "isnative", True):
        return array
    return array.astype(array.dtype.newbyteorder("="))


def normalize(images: jax.Array, mean, std) -> jax.Array:
    """Subtract `mean`, divide by `std`. uint8 [..., 3] -> float32 [..., 3].

    mean, std: three numbers, of pixels in [0, 1]
    Raises InputError for floats, which may reach to 1 or to 255, for other channels,
    and for a mean and std of pixels in [0, 255].
    """
    if images.dtype != jnp.uint8 or images.shape[-1:] != (3,):
        raise InputError(
            f"images is {images.dtype} {list(images.shape)}; it must be pixels, uint8 "
            "[..., 3]"
        )
    checked = Normalization(mean, std)
    mean = _along(images, checked.mean)
    std = _along(images, checked.std)
    largest = 255
    if not isinstance(images, jax.core.Tracer):
        images = jax.device_put(images)
        largest = jax.device_put(np.float32(largest))
    return (images.astype(jnp.float32) / largest - mean) / std


def _along(images, values):
    """Three numbers along the last axis of images, on their device. -> [1, .., 3]."""
    values = np.float32(values).reshape((1,) * (images.ndim - 1) + (3,))
    if isinstance(images, jax.core.Tracer):
        return jnp.asarray(values)
    return jax.device_put(values)


def as_normalized(images: jax.Array, mean, std) -> jax.Array:
    """`normalize` for pixels; floats, which are normalized already, as they are."""
    if images.dtype != jnp.uint8:
        return images
    return normalize(images, mean, std)


def check_images(images, image_size=None, floats: bool = True, pixels: bool = False):
    """Check that images are a batch [B, H, W, 3], B > 0.

    Integers would pass through a model, and mean nothing there.

    image_size: of the images; None: any
    floats: whether floats are allowed; False for a program for pixels
    pixels: whether uint8 is allowed; it is normalized later
    """
    allowed = "floats, as imagepiece_jax.normalize makes them"
    if pixels:
        allowed += ", or uint8"
    if not floats:
        allowed = "uint8, because the program was made with pixels=True"
    shape = images.shape
    dtype = images.dtype
    are_floats = floats and jnp.issubdtype(dtype, jnp.floating)
    are_pixels = pixels and dtype == jnp.uint8
    if not are_floats and not are_pixels:
        raise InputError(f"images is of type {dtype}; it must be {allowed}")
    size = image_size and sides(image_size)
    is_batch = len(shape) == 4 and shape[0] > 0 and shape[3] == 3
    if not is_batch or (size and shape[1:3] != size):
        some = size_text(size) if size else "any size"
        raise InputError(
            f"images is of shape {shape}; it must be [B, H, W, 3], one or more images "
            f"of {some}"
        )


def warn_of_range(images, mean, std, stacklevel: int = 2) -> bool:
    """Warn of an array on the host that cannot be normalized images, by its range.

    Pixels of 0 .. 255 or of 0 .. 1 are floats, too, and their logits mean nothing. A
    sample of the pixels decides. Constant arrays, arrays on accelerators (the check
    would wait for them) and traced ones are not checked.

    stacklevel: of the line that the warning names, 1 for the caller
    Returns whether the range was judged; that of constant arrays is not.
    """
    if not _on_host(images) or not jnp.issubdtype(images.dtype, jnp.floating):
        return False
    slices = []
    for side, count in zip(images.shape, (8, 32, 32), strict=False):
        slices.append(slice(None, None, max(1, side // count)))
    sample = np.asarray(images)[tuple(slices)].astype(np.float32)
    low = sample.min(initial=np.inf)
    high = sample.max(initial=-np.inf)
    if low >= high:
        return False
    black = (0 - np.asarray(mean)) / std
    white = (1 - np.asarray(mean)) / std
    farthest = max(abs(black).max(), abs(white).max())
    if np.isnan(low):
        fault = "not all numbers: some are NaN"
    elif max(-low, high) > max(10, 2 * farthest):
        fault = "far from 0, as pixels of 0 .. 255"
    elif low >= 0 and high <= 1 and black.min() < 0:
        fault = "all from 0 to 1, as pixels before normalization"
    else:
        return True
    warnings.warn(
        f"the values of images are {fault}; allowed: images normalized by the "
        f"model's mean {mean} and std {std} (imagepiece_jax.normalize)",
        stacklevel=stacklevel + 1,
    )
    return True


def _on_host(images):
    """Whether an array is in the memory of this process."""
    if isinstance(images, jax.Array) and not isinstance(images, jax.core.Tracer):
        here = images.is_fully_addressable  # not spread over processes
        return here and all(device.platform == "cpu" for device in images.devices())
    return isinstance(images, np.ndarray)
