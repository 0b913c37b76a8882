"""Sizes of images: pixels a side, or (height, width)."""


def sides(image_size) -> tuple[int, int]:
    """(height, width) of an image size, which is one number or these two."""
    if isinstance(image_size, tuple | list):
        return tuple(image_size)
    return image_size, image_size


def described(image_size) -> str:
    """An image size in words: "224x224"."""
    return "{}x{}".format(*sides(image_size))


def whole_patches(images, patch_size):
    """Images [B, H, W, 3] cut to whole patches, and their (rows, columns) of patches.

    A model cuts off what is left at the bottom and on the right.
    """
    grid = tuple(side // patch_size for side in images.shape[1:3])
    height, width = (patch_size * count for count in grid)
    return images[:, :height, :width], grid
