"""Images from a caller: paths, folders, PIL images, arrays."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.files import AnyPath, read_text
from imagepiece_jax.common.progress import log, with_progress_bar
from imagepiece_jax.data import decode
from imagepiece_jax.data.preprocessing import RgbPixels
from imagepiece_jax.data.source import ArraySource, FileSource, Source
from imagepiece_jax.data.sources import registry
from imagepiece_jax.data.sources.folder import find_folder_images
from imagepiece_jax.errors import InputError, titled_errors

Crop = Callable[[RgbPixels], RgbPixels]


def as_batch(images: Any, crop: Crop) -> np.ndarray | jax.Array:
    """Turn images into one array; batches and floats pass unchanged.

    images: an array [B, H, W, 3], or one or several images for `read_pixels`
    crop: resizes and crops any image to the model's size
    Returns `images`, or uint8 [B, H, W, 3].
    """
    if isinstance(images, jax.core.Tracer):  # of the caller's own `jax.jit`
        return images
    # A torch tensor's dtype is torch's.
    if isinstance(getattr(images, "dtype", None), np.dtype):
        if jnp.issubdtype(images.dtype, jnp.floating) or images.ndim == 4:
            return images
    pictures, _ = list_pictures(images)
    return np.stack([crop_picture(picture, crop) for picture in pictures])


def crop_picture(picture: Any, crop: Crop) -> RgbPixels:
    """Crop a picture as `read_pixels` takes it."""
    pixels = read_pixels(picture)
    with titled_errors(picture if isinstance(picture, AnyPath) else "images"):
        return crop(pixels)


def list_pictures(images: Any) -> tuple[Any, bool]:
    """(pictures, whether the input was a single image); a folder gives its files."""
    is_path = isinstance(images, AnyPath)
    if is_path and os.path.isdir(os.path.expanduser(images)):
        return find_images([images]), False
    is_pil_image = hasattr(images, "convert")
    if is_path or is_pil_image or getattr(images, "ndim", None) == 3:
        return [images], True
    return images, False


def read_pixels(image: Any) -> RgbPixels:
    """Pixels of one image; files and PIL images are turned upright.

    image: a path, a PIL image, or an array uint8 [H, W, 3]
    """
    if isinstance(image, AnyPath):
        path = os.path.expanduser(image)
        return decode.decode_image(path, str(path))
    if hasattr(image, "convert"):
        return decode.convert_to_rgb(image)
    shape = getattr(image, "shape", ())
    dtype = getattr(image, "dtype", None)
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
        kind = f"{dtype} {list(shape)}" if dtype is not None else type(image).__name__
        raise InputError(f"images is {kind}, no path, PIL image or uint8 [H, W, 3]")
    return np.array(image)  # a copy, because the caller may change the image later


def as_source(images: Any, split: str = "train") -> Source:
    """Make a Source of images, ignoring labels.

    images: csv:FILE, a set's name, paths, images for `read_pixels`, uint8 [B, H, W, 3],
        or a Source, which is returned; or a list of one of them
    split: of tables and sets, and "train" of folders with splits
    """
    if isinstance(images, Source):
        return images
    if isinstance(images, list | tuple) and len(images) == 1:
        (images,) = images
    is_text = isinstance(images, str)
    if is_text and (images.startswith("csv:") or registry.is_set_name(images)):
        return registry.open_source(images, split, labeled=False)
    if isinstance(images, AnyPath):
        images = [images]
    pictures = [*list_pictures(images)[0]]
    if all(isinstance(picture, AnyPath) for picture in pictures):
        return FileSource("", find_images(pictures, split))  # "": below no root
    return ArraySource([read_pixels(picture) for picture in pictures])


def find_images(paths: Sequence[AnyPath], split: str | None = None) -> list[str]:
    """List the image files that `paths` name, without opening them.

    A folder stands for its images, a .txt file for its lines.

    split: "train": folders with splits give only training images
    """
    image_paths = []
    for given_path in paths:
        path = os.path.expanduser(given_path)
        os.stat(path)  # names a missing file
        if os.path.isdir(path):
            image_paths += find_folder_images(path, only_train=split == "train")
        elif str(path).lower().endswith(".txt"):
            image_paths += _read_path_list(path)
        else:
            image_paths.append(os.fspath(path))
    if not image_paths:
        hint = "after the weights give images, folders or .txt lists of paths"
        raise InputError(f"images is empty; {hint}")
    return image_paths


def _read_path_list(list_path):
    """Paths listed in a text file, without blanks around them."""
    # splitlines() would also split at other characters. File names may be any bytes.
    lines = map(str.strip, read_text(list_path, "surrogateescape").split("\n"))
    paths = [os.path.expanduser(line) for line in lines if line]
    # Relative paths start at the current folder or, if none exists there, at the list.
    relative_paths = [path for path in paths if not os.path.isabs(path)]
    exists_here = any(map(os.path.exists, relative_paths))
    folder = "" if exists_here else os.path.dirname(list_path)
    return [os.path.join(folder, path) for path in paths]


def read_images(source: Source, transform: Crop) -> tuple[np.ndarray, list[str]]:
    """(uint8 [images, height, width, 3], names) of a source's readable images."""
    cropped_images = []
    names = []
    for index in with_progress_bar(range(len(source)), "reading images"):
        image = source[index]
        if image.pixels is None:
            log.warning(f"{image.damage}: it is left out")
            continue
        with titled_errors(image.name):
            cropped_images.append(transform(image.pixels))
        names.append(image.name)
    if not cropped_images:
        raise InputError(f"none of {len(source)} images can be read")
    return np.stack(cropped_images), names
