"""Images that a model takes, and how they become so: size, crop and interpolation."""

import dataclasses
import numbers

import jax.numpy as jnp

from imagepiece_jax.common.image_size import described, sides
from imagepiece_jax.errors import InputError

CROP_MODES = ("center", "squash")
INTERPOLATIONS = ("bicubic", "bilinear")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How weights were evaluated, in timm's terms.

    image_size: pixels a side, or (height, width), that the model gets. They are cut out
    of the center of an image resized to image_size / crop: its shorter side ("center")
    or both sides, whatever its aspect ("squash"). crop None: nothing is known.
    """

    image_size: int | tuple[int, int]
    crop: float | None = None
    crop_mode: str = "center"
    interpolation: str = "bicubic"

    def __post_init__(self):
        crop = self.crop
        number = isinstance(crop, numbers.Real) and not isinstance(crop, bool)
        if crop is not None and not (number and 0 < crop <= 1):
            raise InputError(
                f"crop is {crop!r}; allowed are numbers above 0 and up to 1"
            )
        for field, allowed in (
            ("crop_mode", CROP_MODES),
            ("interpolation", INTERPOLATIONS),
        ):
            if (value := getattr(self, field)) not in allowed:
                listed = ", ".join(allowed)
                raise InputError(f"{field} is {value!r}; allowed are {listed}")


def fields_of(fields):
    """`fields` of a Preprocessing but its size; InputError for others."""
    allowed = [field.name for field in dataclasses.fields(Preprocessing)][1:]
    if not {*fields} <= {*allowed}:
        raise InputError(
            f"preprocessing is {fields!r}; its fields are {', '.join(allowed)}"
        )
    return dict(fields)


def check_images(images, image_size=None, pixels=False):
    """InputError for others than normalized ones [B, H, W, 3], of a size if given.

    Integers would pass through a model, and mean nothing there. pixels: uint8 is
    allowed, too, where it is normalized before.
    """
    shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", None)
    right = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    if not right and not (pixels and dtype == jnp.uint8):
        found = type(images).__name__ if dtype is None else f"of type {dtype}"
        raise InputError(
            f"images is {found}; allowed are floats, normalized by the model's mean "
            "and std (data.normalize)" + ", or uint8" * pixels
        )
    size = image_size and sides(image_size)
    wanted = described(size) if size else "any size"
    if len(shape) != 4 or shape[3] != 3 or (size and shape[1:3] != size):
        raise InputError(
            f"images is of shape {shape}; allowed are images of {wanted} in an array "
            "[B, H, W, 3]"
        )
