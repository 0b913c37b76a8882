"""Images from a caller: paths, folders, PIL images, arrays.

`as_batch` makes an array, `as_source` a Source, and `find_images` a list of files.
"""

import itertools
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.files import read_text
from imagepiece_jax.common.progress import log, notes, with_progress_bar
from imagepiece_jax.data import decode
from imagepiece_jax.data.normalize import is_array
from imagepiece_jax.data.source import ArraySource, FileSource, Source
from imagepiece_jax.data.sources import registry
from imagepiece_jax.data.sources.folder import left_out_note, list_images, train_folder
from imagepiece_jax.errors import InputError

PATH = str | os.PathLike
QUOTED = re.compile(r"""\A(["'])(.*)\1\Z""", re.DOTALL)


def as_batch(images, preprocessing) -> np.ndarray | jax.Array:
    """Turn images into one array; batches and floats pass unchanged.

    images: an array [B, H, W, 3], or one or several images for `rgb`
    preprocessing: function that crops any image to the model's size
    Returns `images`, or uint8 [B, H, W, 3].
    """
    if isinstance(images, jax.core.Tracer):
        return images
    if is_array(images):
        floats = jnp.issubdtype(images.dtype, jnp.floating)
        if floats or images.ndim == 4:
            return images
    images, _ = listed(images)
    pixels = [cropped(image, preprocessing) for image in images]
    if not pixels:
        raise InputError("images is empty")
    return np.stack(pixels)


def cropped(image, preprocessing) -> np.ndarray:
    """Crop an image as `rgb` takes it. -> uint8 [h, w, 3]."""
    pixels = rgb(image)
    try:
        return preprocessing(pixels)
    except InputError as error:
        if isinstance(image, PATH):
            raise InputError(f"{image}: {error}") from error
        raise


def listed(images) -> tuple[Any, bool]:
    """(images, whether the input was a single image); a folder gives its files."""
    is_picture = isinstance(images, PATH) or hasattr(images, "convert")  # PIL's
    if isinstance(images, PATH) and os.path.isdir(os.path.expanduser(images)):
        return find_images([images]), False
    if is_picture or getattr(images, "ndim", None) == 3:
        return [images], True
    return images, False


def rgb(image) -> np.ndarray:
    """Pixels of one image, uint8 [H, W, 3]; files and PIL images are turned upright.

    image: a path, a PIL image, or an array uint8 [H, W, 3]
    Raises UnreadableImage for an unreadable file.
    """
    if isinstance(image, PATH):
        path = os.path.expanduser(image)
        return decode.decode(path, str(path))
    if hasattr(image, "convert"):
        return decode.rgb(image)
    shape = getattr(image, "shape", ())
    dtype = getattr(image, "dtype", None)
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
        image_type = type(image).__name__
        if dtype is not None:
            image_type = f"{dtype} {list(shape)}"
        raise InputError(
            f"images is {image_type}; an image is a path, a PIL image or an array "
            "uint8 [H, W, 3]"
        )
    return np.array(image)  # a copy, because the caller may change the image later


def as_source(images: Any, split: str = "train") -> Source:
    """Make a Source of images, ignoring labels.

    images: csv:FILE, a set's name, paths, images for `rgb`, uint8 [B, H, W, 3], or a
        Source, which is returned; or a list of one of them
    split: of tables and sets, and "train" of folders with splits
    """
    if isinstance(images, Source):
        return images
    if isinstance(images, list | tuple) and len(images) == 1:
        (images,) = images
    is_text = isinstance(images, str)
    if is_text and (images.startswith("csv:") or registry.is_set(images)):
        return registry.open_source(images, split, labeled=False)
    if isinstance(images, PATH):
        images = [images]
    images = [*listed(images)[0]]
    if all(isinstance(image, PATH) for image in images):
        return photographs(find_images(images, split))
    return ArraySource([rgb(image) for image in images])


def photographs(files: Sequence[PATH]) -> FileSource:
    """Image files without labels."""
    return FileSource("", files, np.full(len(files), -1))


def find_images(words: Sequence[PATH], split: str | None = None) -> list[str]:
    """List the image files that `words` name, without opening them.

    A folder stands for its images (`list_images`), a .txt file for its lines. Notes
    name left-out files and the split in use.

    split: "train": folders with splits give only training images
    """
    files = []
    for word in words:
        path = os.path.expanduser(word)
        if os.path.isdir(path):
            if split == "train":
                path = train_folder(path)
            listing = list_images(path)
            if note := left_out_note(path, listing.left_out):
                notes.info(f"note: {note}")
            files += [os.path.join(path, image) for image in listing.images]
        elif not os.path.exists(path):
            raise InputError(f"images: {word} does not exist")
        elif str(path).lower().endswith(".txt"):
            files += _lines(path)
        else:
            files.append(os.fspath(path))
    if not files:
        raise InputError("images is empty")
    return files


def _lines(path):
    """Paths listed in a text file, without blanks and quotes around them."""
    bases = ("", os.path.dirname(path))
    text = read_text(path, "surrogateescape")
    if "\0" in text:
        raise InputError(f"images: {path} is not a list of paths: it has a zero byte")
    lines = []
    for line in text.split("\n"):  # splitlines() also splits at other characters
        line = line.removesuffix("\r")
        bare = QUOTED.sub(r"\2", line.strip())
        # A file name may really have blanks or quotes around it.
        if bare != line and _base([line], bases) is None:
            line = bare
        if line:
            lines.append(os.path.expanduser(line))
    # Relative paths start at the current folder or, if none exists there, at the list.
    base = _base([line for line in lines if not os.path.isabs(line)], bases) or ""
    return [os.path.join(base, line) for line in lines]


def _base(paths, folders):
    """Folder that holds the first existing path; None if no path exists."""
    for path, folder in itertools.product(paths, folders):
        if os.path.exists(os.path.join(folder, path)):
            return folder
    return None


def read_images(source: Source, transform) -> tuple[np.ndarray, list[str]]:
    """(uint8 [B, H, W, 3], names) of a source's readable images."""
    pixels = []
    names = []
    for index in with_progress_bar(range(len(source)), "reading images"):
        image = source[index]
        if not image.readable:
            log.warning(f"{image.name} is left out: {image.damage.reason}")
            continue
        try:
            pixels.append(transform(image.pixels))
        except InputError as error:
            raise InputError(f"{image.name}: {error}") from error
        names.append(image.name)
    if not pixels:
        count = len(source)
        first = source.name(0)
        raise InputError(f"none of {count} files can be read, the first is {first}")
    return np.stack(pixels), names
