"""Sources of images and labels by index: files, arrays, and parts of any source.

Batches, epochs and augmentation are not known here.
"""

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

SPLITS = ("train", "val")
# What folders, tables and the hub call the splits; nothing else is guessed.
VALIDATION_NAMES = ("val", "valid", "validation", "dev")
SPLIT_NAMES = ("train", *VALIDATION_NAMES, "test")
SAMPLE = 64  # so many images are read where reading all would take too long
THREADS = 16  # threads that ask for sizes of files, which is slow over a network


class Image(NamedTuple):
    """An element of a source."""

    pixels: np.ndarray | None  # uint8 RGB [H, W, 3]; None: the image cannot be read
    label: int  # -1: it has none
    name: str  # in a log: its file name where it has one
    damage: decode.UnreadableImage | None = None

    @property
    def readable(self) -> bool:
        return self.pixels is not None


class Source(abc.ABC):
    """Images and labels by index: `source[i]` is an Image.

    They are all images of a store, or those at the `indices` of a part. A store
    implements `stored`.

    indices: place in the store of each image
    class_names: a name or None for each class; None where the data have no names
    labels: of all images of the store, int32; None where it does not list them
    split: its name in the data, such as "valid"; "": the data have no splits
    upright: whether the EXIF orientation is applied
    unreadable: {name of a damaged file: reason}, filled by `decode.record_unreadable`
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
    def stored(self, place: int) -> tuple[str | bytes | np.ndarray, int, str]:
        """(path, encoded bytes or pixels; label; name) of the image at a place."""

    def __len__(self) -> int:
        """Number of images, damaged ones included."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Image:
        data, label, name = self._stored(index)
        if isinstance(data, np.ndarray):
            return Image(data, label, name)
        try:
            return Image(decode.decode(data, name, self.upright), label, name)
        except decode.UnreadableImage as damage:
            return Image(None, label, name, damage)

    def name(self, index: int) -> str:
        """Name of image `index` in a log."""
        return self._stored(index)[2]

    def size(self, index: int) -> tuple[int, int] | None:
        """(height, width) of image `index` by its header; None if it is unreadable."""
        data = self._stored(index)[0]
        if isinstance(data, np.ndarray):
            return data.shape[:2]
        return decode.size(data, self.upright)

    def some_sizes(self) -> list[tuple[int, int]]:
        """`size` of up to 64 readable images, spread over the source."""
        return [*filter(None, map(self.size, self._sample()))]

    @property
    def present_labels(self) -> tuple[int, ...]:
        """The labels that images have, in rising order.

        A part has those of its store. A store that does not list labels has all.
        """
        if self.labels is None:
            return tuple(range(self.num_classes))
        return tuple(np.unique(self.labels).tolist())

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits that differ for other images or labels.

        They are made from names, labels, sizes in bytes, and the content of 64 images,
        so that no set has to be read. Other images of equal sizes may be missed. The
        folder and times do not count, as data are copied.
        """
        return self._digest(self._sample())

    @functools.cached_property
    def whole_digest(self) -> str:
        """As `digest`, of the content of all images, which are read."""
        return self._digest(range(len(self)))

    def _digest(self, read):
        """A digest of all images, with the content of those at the indices `read`."""
        total = hashlib.sha256(str(len(self)).encode())
        for part in self.inventory(np.asarray(self.indices)):
            total.update(hashlib.sha256(part).digest())

        def content(index):
            data, label, _ = self._stored(index)
            return str(label).encode() + hashlib.sha256(_content(data)).digest()

        with ThreadPool(THREADS) as pool:
            for part in pool.imap(content, read):
                total.update(part)
        return total.hexdigest()[:16]

    def inventory(self, places: np.ndarray) -> Iterator[bytes]:
        """Bytes that differ for other images at some places; none is opened."""
        for place in places.tolist():
            _, label, name = self.stored(place)
            yield f"{name} {label}".encode(errors="surrogateescape")

    def try_first(self, transform, **options):
        """Check that the first readable image fits `transform`."""
        for index in range(min(len(self), decode.MAX_IN_A_ROW)):
            image = self[index]
            if not image.readable:
                continue
            try:
                transform(image.pixels, **options)
            except InputError as error:
                raise InputError(f"{image.name}: {error}") from error
            return

    def spread(self, count: int | None) -> "Source":
        """`count` images, evenly spaced; all of a smaller source, and for None."""
        if count is None or count >= len(self):
            return self
        return self.subset(evenly_spaced(len(self), count))

    def subset(self, indices: Sequence[int]) -> "Source":
        """Some images of the source, in the order of `indices`."""
        part = copy.copy(self)
        for name in ("digest", "whole_digest"):
            part.__dict__.pop(name, None)
        part.indices = np.asarray(self.indices)[np.asarray(indices, np.int64)]
        part.unreadable = {}
        return part

    @property
    def part(self) -> dict[str, str]:
        """{"part": hash of the indices of a part, FNV-1a in hex digits}; {}: all."""
        if isinstance(self.indices, range):
            return {}
        power = np.uint64(1099511628211)
        total = np.uint64(14695981039346656037)
        with np.errstate(over="ignore"):
            for index in self.indices.astype(np.uint64):
                total = (total ^ index) * power
        return {"part": f"{int(total):016x}"}

    def _stored(self, index):
        return self.stored(int(self.indices[index]))

    def _sample(self) -> list[int]:
        """Up to 64 indices, spread over the source."""
        count = min(len(self), SAMPLE)
        return [i * (len(self) - 1) // max(1, count - 1) for i in range(count)]


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """`count` indices of `total` things, the first and the last among them."""
    return np.linspace(0, total - 1, count).round().astype(int)


def _content(data):
    """Bytes that hold an image; empty where its file cannot be read."""
    if isinstance(data, np.ndarray):
        return data.tobytes()
    if isinstance(data, bytes):
        return data
    try:
        with open_regular(data) as file:
            return file.read()
    except OSError:  # one damaged file is left out, and does not end a run
        return b""


class FileSource(Source):
    """Image files below `root`; `labels` has one for each."""

    def __init__(self, root, files, labels, num_classes=0, class_names=None):
        super().__init__(len(files), num_classes, class_names)
        self.root = root
        # Every worker process has a copy: as bytes a million names take 50 MB, as
        # Python strings 130 MB.
        self.files = np.array([os.fsencode(file) for file in files])
        self.labels = np.asarray(labels, np.int32)

    def stored(self, place):
        path = os.path.join(self.root, os.fsdecode(self.files[place]))
        return path, int(self.labels[place]), path

    def inventory(self, places):
        files = self.files[places]
        yield b"\0".join(files.tolist())
        yield self.labels[places].tobytes()
        paths = [os.path.join(os.fsencode(self.root), file) for file in files]
        yield file_sizes(paths).tobytes()


def file_sizes(paths: Sequence[str | bytes]) -> np.ndarray:
    """Sizes of files in bytes, int64; -1 of one that cannot be looked at."""

    def size(path):
        try:
            return os.stat(path).st_size
        except OSError:
            return -1

    with ThreadPool(THREADS) as pool:
        return np.array(pool.map(size, paths), np.int64)


class ArraySource(Source):
    """Images in memory.

    images: uint8 [H, W, 3], maybe of different sizes
    labels: one for each; None: they have none
    names: one for each; None: "image 0" and so on
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

    def stored(self, place):
        name = f"image {place}" if self.names is None else self.names[place]
        return self.images[place], int(self.labels[place]), name


def find_splits(names: Collection[str], data: str) -> dict[str, str]:
    """{"train" or "val": its name}: the splits among `names`, which may have others.

    A test split stands in for a missing validation split.
    """
    validation = [name for name in VALIDATION_NAMES if name in names]
    if len(validation) > 1:
        names = " and ".join(validation)
        raise InputError(f"{data} has two validation splits, {names}")
    found = {"train": ["train"], "val": validation or ["test"]}
    return {split: name for split, (name,) in found.items() if name in names}


def check_num_classes(num_classes, classes, data):
    """Check that num_classes is what `data` has."""
    if num_classes not in (None, classes):
        raise InputError(
            f"num_classes is {num_classes}, but {data} has {classes} classes"
        )
