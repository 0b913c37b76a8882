"""Images that a caller hands over: paths, folders, tables, PIL images, arrays.

`as_batch` makes one array of them, and `as_source` a Source. Commands find the files
that words name, by `find_images` or `listed`, and read them one by one.
"""

import csv
import logging
import os
import pathlib
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.progress import counted
from imagepiece_jax.data import decode
from imagepiece_jax.data.csv_table import open_csv
from imagepiece_jax.data.folder import (
    left_out_note,
    list_images,
    open_folder,
    split_folder,
)
from imagepiece_jax.data.normalize import is_array
from imagepiece_jax.data.source import ArraySource, FileSource, Source
from imagepiece_jax.errors import InputError

PATH = str | os.PathLike
LOADING = threading.Lock()  # Pillow reads a file at first use, in one thread only

log = logging.getLogger("imagepiece_jax.data")


class NoImage(InputError):
    """What a caller gives can be no image, whatever it holds: by its type or shape."""


def as_batch(images, preprocessing) -> np.ndarray | jax.Array:
    """Images as one array: batches and floats as they are, others cropped.

    images: an array [B, H, W, 3]; or one image as `rgb` takes it, or several
    preprocessing: crops images of any size to that of the model
    Returns `images`, or [B, H, W, 3] uint8.
    """
    if isinstance(images, jax.core.Tracer):
        return images
    if is_array(images):
        floats = jnp.issubdtype(images.dtype, jnp.floating)
        if floats or images.ndim == 4:
            return images
    images = [images] if is_one(images) else images
    return np.stack([cropped(image, preprocessing) for image in images])


def cropped(image, preprocessing) -> np.ndarray:
    """The pixels of an image as `rgb` takes it, cropped. -> [h, w, 3] uint8."""
    pixels = rgb(image)
    try:
        return preprocessing(pixels)
    except InputError as error:
        if name_of(image):
            raise InputError(f"{name_of(image)}: {error}") from error
        raise


def of_folder(images):
    """The files of a folder (`find_images`); anything else as it is."""
    if not isinstance(images, PATH):
        return images
    path = os.path.expanduser(images)
    return find_images([path]) if os.path.isdir(path) else images


def name_of(image) -> str:
    """The path of an image that is a file; "" for any other."""
    return os.fspath(image) if isinstance(image, PATH) else ""


def is_one(images) -> bool:
    """Whether this is one image, or none at all, rather than several."""
    if isinstance(images, PATH | bytes) or hasattr(images, "convert"):  # PIL's
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
    is_batch = images.ndim == 4 and shape[3] == 3 and 0 not in shape[1:]
    if not is_batch or images.dtype != np.uint8:
        raise NoImage(
            f"images is {images.dtype} {list(shape)}; it must be pixels, uint8 "
            "[B, H, W, 3]"
        )


def rgb(image) -> np.ndarray:
    """Pixels of one image: a file or a PIL image (both upright), or an array.

    image: a path, a PIL image, or an array uint8 [H, W, 3]
    Returns [H, W, 3] uint8.
    Raises InputError for an image that cannot be read, NoImage for what is none.
    """
    if isinstance(image, PATH):
        path = os.path.expanduser(image)
        return decode.decode(path, str(path), upright=True)
    if hasattr(image, "convert"):
        try:
            if 0 in image.size:
                raise ValueError("it is empty")
            with LOADING:
                return decode.rgb(image, upright=True)
        except Exception as error:  # Pillow reads files late and raises nearly anything
            raise InputError(f"a PIL image cannot be read ({error})") from error
    shape = getattr(image, "shape", ())
    dtype = getattr(image, "dtype", None)
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
        kind = type(image).__name__
        if dtype is not None:
            kind = f"{dtype} {list(shape)}"
        raise NoImage(
            f"images is {kind}; an image is a path, a PIL image or an array uint8 "
            "[H, W, 3]"
        )
    return np.array(image)  # a copy, as its owner may change it later


def photographs(files: Sequence[PATH]) -> FileSource:
    """Image files without labels, turned as their EXIF says."""
    return FileSource("", files, np.full(len(files), -1), upright=True)


def as_source(images: Any) -> Source:
    """The Source of images without labels.

    images: a folder, one path or several, uint8 [B, H, W, 3], images as `rgb` takes
        them, csv:FILE or folder:PATH, whose training images are taken, as they are of a
        folder that holds train and val; a Source stays what it is
    An image of several that cannot be read is left out, with a warning.
    """
    if isinstance(images, Source):
        return images
    if isinstance(images, str):
        kind, _, path = images.partition(":")
        path = os.path.expanduser(path)
        whole = os.path.expanduser(images)
        if whole.lower().endswith(".csv") and os.path.isfile(whole):
            return open_csv(whole, "train", labeled=False)
        if kind == "csv" and path:
            return open_csv(path, "train", labeled=False)
        if kind == "folder" and path:
            if not os.path.isdir(path) or os.path.isdir(os.path.join(path, "train")):
                return open_folder(path, "train", None, False, None)
            images = path
    alone = is_one(images)
    if not alone:
        check_batch(images)
    images = [images] if alone else list(images)
    if all(isinstance(image, PATH) for image in images):
        return _photographs(images)
    pixels = []
    for number, image in enumerate(images):
        try:
            pixels.append(rgb(image))
        except NoImage:
            raise
        except InputError as error:
            if alone:
                raise
            log.warning("image %s: %s: it is left out", number, error)
    return ArraySource(pixels)


def _photographs(paths):
    """The `photographs` of paths of images and folders."""
    paths = [os.path.expanduser(path) for path in paths]
    check_there(paths)
    return photographs(find_images(paths, "train"))


def find_images(words: list[str], split: str | None = None) -> list[pathlib.Path]:
    """The files that `words` name; a folder stands for its images, by `list_images`.

    Prints which files of a folder are left out, and which of its splits is taken.

    split: which images of a folder with splits are taken, as `split_folder` takes it
    """
    if not words or "" in words:  # which as a path is the folder where one is
        raise InputError("images is empty, or has an empty path")
    files = []
    for path in map(pathlib.Path, words):
        if path.is_dir():
            files += map(pathlib.Path, _of_folder(path, split))
        else:
            files.append(path)
    return files


def _of_folder(path, split):
    """Yield the paths of a folder's images, as `find_images` takes them."""
    path, split_note = split_folder(path, split)
    found = list_images(path)
    if not found.images:
        raise decode.no_image(path)
    for note in (split_note, left_out_note(path, found.left_out)):
        if note:
            print(f"note: {note}", flush=True)
    for image in found.images:
        yield os.path.join(path, image)


def listed(names: Iterable[str]) -> Iterator[str]:
    """Yield the paths of image files, one after the other; none is opened.

    names: folders, also as folder:PATH, which stand for their images, by `list_images`;
        tables (.csv, csv:FILE), for their column filename, relative to the table; lists
        (.txt), for their lines; other paths stand for themselves
    """
    for name in names:
        path = _path_of(name)
        if os.path.isdir(path):
            yield from _of_folder(path, None)
        elif path.lower().endswith(".csv"):
            yield from _of_table(path)
        elif path.lower().endswith(".txt"):
            yield from _of_list(path)
        else:
            yield path


def check_there(names: Iterable[str]):
    """Check that all `names` of `listed` are there."""
    for name in names:
        if not os.path.exists(_path_of(name)):
            raise InputError(f"images: {name} does not exist")


def _path_of(name):
    """The path in "folder:PATH", "csv:FILE" and "PATH"."""
    kind, _, path = name.partition(":")
    if kind not in ("folder", "csv") or os.path.exists(name):
        path = name
    return os.path.expanduser(path)


def _of_table(path):
    """Yield the paths in the column filename of a table."""
    with _opened(path) as file:
        table = csv.DictReader(file, restval="")
        columns = [name.strip() for name in table.fieldnames or ()]
        table.fieldnames = columns
        if "filename" not in columns:
            raise InputError(f"{path} has no column 'filename'")
        folder = os.path.dirname(path)
        for row in table:
            yield os.path.join(folder, row["filename"])


def _of_list(path):
    """Yield the lines of a file that are not empty; only "\\n" ends a line."""
    with _opened(path, newline="\n") as file:
        for line in file:
            if name := line.rstrip("\r\n"):
                yield name


def _opened(path, newline=""):
    """A file of text, names that are not UTF-8 among it."""
    text = {"encoding": "utf-8-sig", "errors": "surrogateescape"}
    return open(path, newline=newline, **text)


def sizes_note(files: list[pathlib.Path], transform) -> str | None:
    """`transform.note` of the readable images among `files`, upright as they are shown.

    Sizes are those that are stored, so images on their side have another.
    """
    sizes = [decode.size(file) for file in files]
    readable = [size for size in sizes if size]
    return transform.note(readable, len(files))


def read_images(files: list[pathlib.Path], transform) -> tuple[np.ndarray, list[str]]:
    """The readable images among `files`; why others are left out is printed.

    Returns (uint8 [B, H, W, 3], their names).
    """
    images = []
    names = []
    for file in counted(files, "reading images"):
        try:
            images.append(cropped(file, transform))
        except decode.UnreadableImage as error:
            print(f"{error.name} is left out: {error.reason}", file=sys.stderr)
            continue
        names.append(file.name)
    if not images:
        raise InputError(
            f"none of {len(files)} files can be read, the first is {files[0]}"
        )
    return np.stack(images), names
