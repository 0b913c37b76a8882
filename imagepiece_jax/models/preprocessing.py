"""Images that a model takes, and how they become so: size, crop and interpolation."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from imagepiece_jax.common.fields import (
    REQUIRED,
    CheckedFields,
    checked,
    choice,
    is_whole,
    number,
    optional,
)
from imagepiece_jax.common.image_size import described, sides
from imagepiece_jax.errors import InputError


def _size(value):
    if len(sides(value)) != 2 or not all(is_whole(s) and s > 0 for s in sides(value)):
        raise ValueError(value)
    return value


@dataclasses.dataclass(frozen=True)
class Preprocessing(CheckedFields):
    """How weights were evaluated, in timm's terms.

    image_size: pixels a side, or (height, width), that the model gets
    crop: their share of the sides of the resized image, out of whose center they are
        cut; None: nothing is known
    crop_mode: "center" resizes the shorter side to image_size / crop, "squash" both
        sides, whatever the aspect
    interpolation: "bicubic" or "bilinear"
    """

    image_size: int | tuple[int, int] = checked(
        REQUIRED, _size, "pixels a side, and (height, width)"
    )
    crop: float | None = optional(number(above=0, most=1))
    crop_mode: str = choice("center", ("center", "squash"))
    interpolation: str = choice("bicubic", ("bicubic", "bilinear"))

    @classmethod
    def of(cls, image_size, fields) -> "Preprocessing":
        """The Preprocessing with a dict of other fields. Raises InputError."""
        allowed = [field.name for field in dataclasses.fields(cls)][1:]
        if not isinstance(fields, Mapping) or not {*fields} <= {*allowed}:
            raise InputError(
                f"preprocessing is {fields!r}; allowed: a dict of {', '.join(allowed)}"
            )
        return cls(image_size, **fields)


def check_images(images, image_size=None, pixels=False):
    """Raise InputError for others than floats [B, H, W, 3], B > 0, of a size if given.

    Integers would pass through a model, and mean nothing there.

    pixels: uint8 is allowed, too, and is normalized later
    """
    shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", None)
    right = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    if not right and not (pixels and dtype == jnp.uint8):
        kind = type(images).__name__ if dtype is None else f"of type {dtype}"
        raise InputError(
            f"images is {kind}; allowed: floats, normalized by the model's mean "
            "and std (imagepiece_jax.normalize)" + ", or uint8" * pixels
        )
    size = image_size and sides(image_size)
    wanted = described(size) if size else "any size"
    if (
        len(shape) != 4
        or shape[0] == 0
        or shape[3] != 3
        or (size and shape[1:3] != size)
    ):
        raise InputError(
            f"images is of shape {shape}; allowed: one or more images of {wanted} "
            "in an array [B, H, W, 3]"
        )
