"""Sources of images and labels by index: files, arrays, and subsets of a source."""

import abc
import copy
import functools
import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

import numpy as np

from imagepiece_jax.common.files import open_regular
from imagepiece_jax.data import decode
from imagepiece_jax.errors import InputError

SPLIT_KINDS = ("train", "val")
# Split names in folders, tables and on the hub; no other name is guessed.
VALIDATION_NAMES = ("val", "valid", "validation", "dev")
SPLIT_NAMES = ("train", *VALIDATION_NAMES, "test")
SAMPLED_IMAGES = 64  # images to read where reading all images would take too long
FILE_THREADS = 16  # threads for file sizes and contents, which are slow over a network


class Image(NamedTuple):
    """One image of a source."""

    pixels: np.ndarray | None  # uint8 RGB [H, W, 3]; None: unreadable
    label: int  # -1: no label
    name: str  # for logs: the file name, if there is a file
    damage: decode.UnreadableImage | None = None

    @property
    def readable(self) -> bool:
        return self.pixels is not None


class Source(abc.ABC):
    """Images and labels by index: `source[i]` is an Image.

    A source holds a whole store, or a subset at `indices`. Subclasses implement
    `stored_image`.

    indices: store index of every image
    class_names: a name or None for every class; None: the data have no names
    labels: int32 labels of the whole store, or None if the store does not list labels
    split: split name in the data, such as "valid"; "": no splits
    upright: whether the EXIF orientation is applied
    unreadable: {damaged file: reason}, filled by `decode.record_unreadable`
    """

    labels = None
    split = ""
    upright = True

    def __init__(self, count, num_classes=0, class_names=None):
        self.indices = range(count)
        self.num_classes = num_classes
        self.class_names = class_names
        self.unreadable = {}

    @abc.abstractmethod
    def stored_image(
        self, store_index: int
    ) -> tuple[str | bytes | np.ndarray, int, str]:
        """(path, bytes or pixels; label; name) of the image at `store_index`."""

    def __len__(self) -> int:
        """Image count, damaged images included."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Image:
        data, label, name = self._image_data(index)
        if isinstance(data, np.ndarray):
            return Image(data, label, name)
        try:
            return Image(decode.decode_image(data, name, self.upright), label, name)
        except decode.UnreadableImage as damage:
            return Image(None, label, name, damage)

    def image_name(self, index: int) -> str:
        """Image name for logs."""
        return self._image_data(index)[2]

    def header_size(self, index: int) -> tuple[int, int] | None:
        """(height, width) from the image's header; None if unreadable."""
        data = self._image_data(index)[0]
        if isinstance(data, np.ndarray):
            return data.shape[:2]
        return decode.read_header_size(data, self.upright)

    def sampled_sizes(self) -> list[tuple[int, int]]:
        """Sizes of readable images among 64, spread over the source."""
        return [*filter(None, map(self.header_size, self._sampled_indices()))]

    @property
    def present_labels(self) -> tuple[int, ...]:
        """Sorted labels in the store, also for a subset; all classes if not listed."""
        if self.labels is None:
            return tuple(range(self.num_classes))
        return tuple(np.unique(self.labels).tolist())

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits that identify images and labels.

        A changed image of equal size may be missed: only 64 images are read.
        """
        # Names, labels, byte sizes and the content of 64 images, so no set is read
        # whole. The folder and file times are left out, because data get copied.
        return self._digest(self._sampled_indices())

    @functools.cached_property
    def whole_digest(self) -> str:
        """Like `digest`, but reads the content of all images."""
        return self._digest(range(len(self)))

    def _digest(self, read):
        """Digest of all images, with the content at the indices `read`."""
        total = hashlib.sha256(str(len(self)).encode())
        for part in self.identity_bytes(np.asarray(self.indices)):
            total.update(hashlib.sha256(part).digest())

        def content(index):
            data, label, _ = self._image_data(index)
            return str(label).encode() + hashlib.sha256(_image_bytes(data)).digest()

        with ThreadPool(FILE_THREADS) as pool:
            for part in pool.imap(content, read):
                total.update(part)
        return total.hexdigest()[:16]

    def identity_bytes(self, indices: np.ndarray) -> Iterator[bytes]:
        """Yield bytes that identify the images, without opening an image."""
        for store_index in indices.tolist():
            _, label, name = self.stored_image(store_index)
            yield f"{name} {label}".encode(errors="surrogateescape")

    def try_first_image(self, transform, **options):
        """Check that the first readable image fits `transform`."""
        for index in range(min(len(self), decode.MAX_UNREADABLE_IN_A_ROW)):
            image = self[index]
            if not image.readable:
                continue
            try:
                transform(image.pixels, **options)
            except InputError as error:
                raise InputError(f"{image.name}: {error}") from error
            return

    def evenly_spaced(self, count: int | None) -> "Source":
        """Take `count` evenly spaced images; all if count is None or not smaller."""
        if count is None or count >= len(self):
            return self
        return self.subset(evenly_spaced_indices(len(self), count))

    def subset(self, indices: Sequence[int]) -> "Source":
        """Take the images at `indices`, in that order."""
        subset = copy.copy(self)
        for name in ("digest", "whole_digest"):
            subset.__dict__.pop(name, None)
        subset.indices = np.asarray(self.indices)[np.asarray(indices, np.int64)]
        subset.unreadable = {}
        return subset

    @property
    def subset_record(self) -> dict[str, str]:
        """{"part": FNV-1a hash of a subset's indices, hex}; {} for a whole source."""
        if isinstance(self.indices, range):
            return {}
        power = np.uint64(1099511628211)
        total = np.uint64(14695981039346656037)
        with np.errstate(over="ignore"):
            for index in self.indices.astype(np.uint64):
                total = (total ^ index) * power
        return {"part": f"{int(total):016x}"}

    def _image_data(self, index):
        return self.stored_image(int(self.indices[index]))

    def _sampled_indices(self) -> list[int]:
        """Up to 64 indices, spread over the source."""
        count = min(len(self), SAMPLED_IMAGES)
        return [i * (len(self) - 1) // max(1, count - 1) for i in range(count)]


def evenly_spaced_indices(total: int, count: int) -> np.ndarray:
    """`count` evenly spaced indices below `total`, first and last included."""
    return np.linspace(0, total - 1, count).round().astype(int)


def _image_bytes(data):
    """Bytes of an image file or of pixels; empty if the file cannot be read."""
    if isinstance(data, np.ndarray):
        return data.tobytes()
    if isinstance(data, bytes):
        return data
    try:
        with open_regular(data) as file:
            return file.read()
    except OSError:  # one damaged file must not end a run
        return b""


class FileSource(Source):
    """Image files below `root`, with their labels."""

    def __init__(self, root, files, labels, num_classes=0, class_names=None):
        super().__init__(len(files), num_classes, class_names)
        self.root = root
        # Bytes, because every worker process has a copy: a million names take 50 MB,
        # and 130 MB as Python strings.
        self.files = np.array([os.fsencode(file) for file in files])
        self.labels = np.asarray(labels, np.int32)

    def stored_image(self, store_index):
        path = os.path.join(self.root, os.fsdecode(self.files[store_index]))
        return path, int(self.labels[store_index]), path

    def identity_bytes(self, indices):
        files = self.files[indices]
        yield b"\0".join(files.tolist())
        yield self.labels[indices].tobytes()
        paths = [os.path.join(os.fsencode(self.root), file) for file in files]
        yield file_sizes(paths).tobytes()


def file_sizes(paths: Sequence[str | bytes]) -> np.ndarray:
    """File sizes in bytes, int64; -1 for a file without access."""

    def size(path):
        try:
            return os.stat(path).st_size
        except OSError:
            return -1

    with ThreadPool(FILE_THREADS) as pool:
        return np.array(pool.map(size, paths), np.int64)


class ArraySource(Source):
    """Images in memory.

    images: uint8 [H, W, 3], sizes may differ
    labels: None: no labels, stored as -1
    names: None: "image 0", "image 1", ..
    """

    def __init__(
        self, images, labels=None, num_classes=0, class_names=None, names=None
    ):
        super().__init__(len(images), num_classes, class_names)
        if labels is None:
            labels = np.full(len(images), -1)
        self.images = images
        self.labels = np.asarray(labels, np.int32)
        self.names = names

    def stored_image(self, store_index):
        name = f"image {store_index}" if self.names is None else self.names[store_index]
        return self.images[store_index], int(self.labels[store_index]), name


def find_splits(names: Collection[str], data: str) -> dict[str, str]:
    """Find splits: {"train" or "val": its name}; "test" may stand in for validation."""
    validation = [name for name in VALIDATION_NAMES if name in names]
    if len(validation) > 1:
        names = " and ".join(validation)
        raise InputError(f"{data} has two validation splits, {names}")
    candidates = {"train": ["train"], "val": validation or ["test"]}
    return {split: name for split, (name,) in candidates.items() if name in names}


def check_num_classes(num_classes, classes, data):
    """Check `num_classes`, unless None, against the class count of `data`."""
    if num_classes not in (None, classes):
        raise InputError(
            f"num_classes is {num_classes}, but {data} has {classes} classes"
        )
