"""Images as callers have them: paths, bytes, open files, PIL images, arrays."""

import io
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from imagepiece_jax.data import decode, image_files
from imagepiece_jax.data.normalize import is_array
from imagepiece_jax.errors import InputError

FILES = str | bytes | os.PathLike  # a file, by name or content
LOADING = threading.Lock()  # Pillow reads a file at first use, in one thread only
TAKEN = "paths, bytes, open files, PIL images and uint8 arrays "
TAKEN += "[H, W], [H, W, 3] and [H, W, 4]"


class NoImage(InputError):
    """What a caller gives can be no image, whatever it holds: by its type or shape."""


def as_batch(images, preprocessing) -> np.ndarray | jax.Array:
    """Images as one array: batches and floats as they are, others cropped.

    images: an array [B, H, W, 3]; or one image as `rgb` takes it, or several
    preprocessing: crops images of any size to that of the model
    Returns `images`, or [B, H, W, 3] uint8.
    Raises InputError for an image that cannot be read.
    """
    if isinstance(images, jax.core.Tracer):
        return images
    if is_array(images):
        floats = jnp.issubdtype(images.dtype, jnp.floating)
        if floats or images.ndim == 4:
            return images
    alone = is_one(images)
    images = [images] if alone else list(images)
    if not images:
        raise InputError("is empty", field="images", allowed="one or more images")
    pixels = []
    for number, image in enumerate(images):
        try:
            pixels.append(preprocessing(rgb(image)))
        except InputError as error:
            place = "" if alone else f"image {number}"
            raise error.inside(place=name_of(image) or place) from error
    return np.stack(pixels)


def of_folder(images):
    """The files of a folder (`image_files.find_images`); anything else as it is."""
    if not isinstance(images, str | os.PathLike):
        return images
    path = os.path.expanduser(images)
    return image_files.find_images([path]) if os.path.isdir(path) else images


def name_of(image) -> str:
    """The path of an image that is a file; "" for any other."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else ""


def is_one(images) -> bool:
    """Whether this is one image, or none at all, rather than several."""
    if isinstance(images, FILES | bytearray | memoryview):
        return True
    if hasattr(images, "convert") or hasattr(images, "read"):  # PIL's, an open file
        return True
    if getattr(images, "ndim", None) in (0, 2, 3):
        return True
    return not hasattr(images, "__iter__")


def check_batch(images):
    """Raise NoImage for an array of several images that are no pixels.

    Of an array of texts each is a path.
    """
    if not is_array(images) or images.dtype.kind in "OSU":
        return
    shape = images.shape
    is_batch = images.ndim == 4 and shape[3] in (3, 4) and 0 not in shape[1:]
    if not is_batch or images.dtype != np.uint8:
        kind = f"{images.dtype} {list(shape)}"
        raise NoImage(
            f"is {kind}",
            field="images",
            value=kind,
            allowed="pixels, uint8 [B, H, W, 3] and [B, H, W, 4]",
        )


def rgb(image) -> np.ndarray:
    """Pixels of one image: a file, a PIL image (both upright) or an array.

    image: a path, bytes, an open binary file, a PIL image, or an array uint8: gray
        [H, W], RGB [H, W, 3] or RGBA [H, W, 4], whose transparency is ignored
    Returns [H, W, 3] uint8.
    Raises InputError for an image that cannot be read, NoImage for what is none.
    """
    if hasattr(image, "read"):
        image = _content(image)
    if isinstance(image, bytearray | memoryview):
        image = bytes(image)
    if isinstance(image, str | os.PathLike):
        image = os.path.expanduser(image)
    if isinstance(image, str) and "*" in image and not os.path.exists(image):
        raise NoImage("is a pattern", place=image, allowed="paths of files")
    if isinstance(image, str) and os.path.isdir(image):
        raise InputError(
            "is a folder",
            place=image,
            allowed="a file, or a list of the folder's files",
        )
    if isinstance(image, bytes):
        return decode.decode(io.BytesIO(image), "the image", upright=True)
    if isinstance(image, FILES):
        return decode.decode(image, str(image) or "the path ''", upright=True)
    if hasattr(image, "convert"):
        if 0 in image.size:
            raise InputError(
                f"is an empty PIL image, of size {image.size}",
                field="images",
                value=image.size,
            )
        try:
            with LOADING:
                return decode.rgb(image, upright=True)
        except Exception as error:  # Pillow reads files late and raises nearly anything
            raise InputError(
                f"is a PIL image that cannot be read: {error}",
                field="images",
            ) from error
    shape = getattr(image, "shape", ())
    dtype = getattr(image, "dtype", None)
    is_image = len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))
    if not is_image or 0 in shape or dtype != np.uint8:
        kind = f"{dtype} {list(shape)}"
        if dtype is None:
            kind = type(image).__name__
        raise NoImage(f"is {kind}", field="images", value=kind, allowed=TAKEN)
    return decode.rgb(Image.fromarray(np.asarray(image)))


def _content(file):
    """The rest of an open file, as bytes."""
    try:
        content = file.read()
    except Exception as error:  # a closed file, a broken connection
        raise InputError(
            f"is an open file that cannot be read: {error}",
            field="images",
        ) from error
    if not isinstance(content, bytes):
        kind = type(content).__name__
        raise NoImage(
            f"is an open file of {kind}",
            field="images",
            value=kind,
            allowed='binary files, open(path, "rb")',
        )
    return content
