"""Image sizes: pixels a side, or (height, width)."""

import math
from typing import Any, TypeAlias

from imagepiece_jax.common.checks import check_range
from imagepiece_jax.errors import InputError

Sides: TypeAlias = tuple[int, int]  # (height, width)
ImageSize: TypeAlias = int | Sides
# Per image. Pillow refuses more as a decompression bomb. A decoded image of this size
# takes 540 MB, and decoding it takes a few times as much.
MAX_PIXELS = 178_956_970


def checked_size(image_size: Any) -> ImageSize:
    """Check an image size and return it in plain Python."""
    sides = image_sides(image_size)
    for side in sides:
        check_range("image_size", side, 1, whole=True)
    if len(sides) != 2 or math.prod(sides) > MAX_PIXELS:
        wanted = f"pixels a side or (height, width), of up to {MAX_PIXELS:,} pixels"
        raise InputError(f"image_size is {image_size}; it must be {wanted}")
    height, width = map(int, sides)
    return (height, width) if isinstance(image_size, tuple | list) else height


def image_sides(image_size: ImageSize) -> Sides:
    """(height, width) of an image size, a number or a pair."""
    if isinstance(image_size, tuple | list):
        return tuple(image_size)
    return image_size, image_size


def size_text(image_size: ImageSize) -> str:
    """Format an image size: "224x224"."""
    return "{}x{}".format(*image_sides(image_size))


def patch_grid(image_size: ImageSize, patch_size: int, cut: bool = False) -> Sides:
    """(height, width) in patches of an image of `image_size`.

    cut: ignore the pixels of incomplete patches, as some published models do
    """
    height, width = image_sides(image_size)
    is_multiple = height % patch_size == 0 and width % patch_size == 0
    if min(height, width) < patch_size or not (cut or is_multiple):
        problem = f"no whole patches of {patch_size}"
        raise InputError(f"image_size is {image_size}, {problem}")
    return height // patch_size, width // patch_size
