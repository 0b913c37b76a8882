"""Sizes of images: pixels a side, or (height, width)."""

import numbers

from imagepiece_jax.errors import InputError


def sides(image_size) -> tuple[int, int]:
    """(height, width) of an image size, which is one number or these two."""
    if isinstance(image_size, tuple | list):
        return tuple(image_size)
    return image_size, image_size


def described(image_size) -> str:
    """An image size in words: "224x224"."""
    return "{}x{}".format(*sides(image_size))


def cut_to_patches(images, patch_size):
    """Images [B, H, W, 3] cut to whole patches, and their (rows, columns) of patches.

    A model cuts off the rest at the bottom and on the right.
    """
    grid = tuple(side // patch_size for side in images.shape[1:3])
    height, width = (patch_size * count for count in grid)
    return images[:, :height, :width], grid


def patch_grid(image_size, patch_size, cut=False):
    """(height, width) in patches of images of `image_size`.

    cut: cut off the rest at the sides, for a model that was published at such a
        size; else the size must be a multiple of the patch size
    Raises InputError where it is not.
    """
    both = sides(image_size)
    whole = len(both) == 2 and all(isinstance(s, numbers.Integral) for s in both)
    right = whole and min(both) >= patch_size
    if right and not cut:
        right = not any(side % patch_size for side in both)
    if not right:
        allowed = f"multiples of the model's patch_size, which is {patch_size}"
        if not whole:
            allowed = f"one whole number or (height, width), {allowed}"
        raise InputError(field="image_size", value=image_size, allowed=allowed)
    return both[0] // patch_size, both[1] // patch_size
