"""Sources of images and labels by index: files, and parts of another source.

Batches, epochs and augmentation are not known here.
"""

import abc
import concurrent.futures
import functools
import hashlib
import io
import os
from collections.abc import Iterator

import numpy as np

from imagepiece_jax.data import decode
from imagepiece_jax.errors import InputError

SPLITS = ("train", "val")
SAMPLE = 64  # so many images are read where reading all would take too long
THREADS = 16  # threads that ask for sizes of files, which is slow over a network


class Source(abc.ABC):
    """Images and labels by index.

    unreadable: {name of a damaged file: reason}, filled by `decode.record_unreadable`
    class_names: a name or None for each class; None where the data have no names
    """

    def __init__(self, num_classes, class_names=None):
        self.num_classes = num_classes
        self.class_names = class_names
        self.unreadable = {}

    @abc.abstractmethod
    def __len__(self):
        """Number of images, damaged ones included."""

    @abc.abstractmethod
    def read(self, index: int) -> tuple[np.ndarray, int]:
        """(uint8 RGB [H, W, 3], label) of image `index`. Raises UnreadableImage."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Name of image `index` in a log: its file name where it has one."""

    def encoded(self, index: int) -> bytes:
        """Bytes of image `index` as stored; none where it is in memory."""
        raise NotImplementedError

    def size(self, index: int) -> tuple[int, int] | None:
        """(height, width) of image `index` by its header; None if it is unreadable."""
        return decode.size(io.BytesIO(self.encoded(index)))

    def some_sizes(self) -> list[tuple[int, int]]:
        """`size` of up to 64 readable images, spread over the source."""
        return [*filter(None, map(self.size, self._sample()))]

    @functools.cached_property
    def present_labels(self) -> tuple[int, ...]:
        """The labels that images have, in rising order.

        A part has those of its source. A source that does not list labels has all.
        """
        labels = getattr(self, "labels", range(self.num_classes))
        return tuple(np.unique(labels).tolist())

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits that differ for other images or labels.

        They are made from names, labels, sizes in bytes, and the content of 64 images,
        so that a corrected label and replaced images show without reading all images.
        The folder and times do not count, as data are copied.
        """
        count = len(self)
        total = hashlib.sha256(str(count).encode())
        for part in self.inventory(np.arange(count)):
            total.update(hashlib.sha256(part).digest())
        for index in self._sample():
            total.update(hashlib.sha256(self.content(index)).digest())
        return total.hexdigest()[:16]

    def _sample(self) -> list[int]:
        """Up to 64 indices, spread over the source."""
        count = min(len(self), SAMPLE)
        return [i * (len(self) - 1) // max(1, count - 1) for i in range(count)]

    def inventory(self, indices: np.ndarray) -> Iterator[bytes]:
        """Bytes that differ for other images, for `digest`; no image is read."""
        names = "\0".join(self.name(int(index)) for index in indices)
        yield names.encode(errors="surrogateescape")

    def content(self, index: int) -> bytes:
        """Bytes that hold image `index`; empty where its file cannot be read."""
        return self.read(index)[0].tobytes()

    def try_first(self, transform, **options):
        """Check that the first readable image fits `transform`."""
        for index in range(min(len(self), decode.MAX_IN_A_ROW)):
            try:
                image, _ = self.read(index)
            except decode.UnreadableImage:
                continue
            try:
                transform(image, **options)
            except InputError as error:
                raise InputError(f"{self.name(index)}: {error}") from error
            return

    def spread(self, count: int | None) -> "Source":
        """`count` images, evenly spaced; all of a smaller source, and for None."""
        if count is None or count >= len(self):
            return self
        return Subset(self, evenly_spaced(len(self), count))

    @property
    def part(self) -> dict[str, str]:
        """{"part": a text that differs for other parts of a larger source}; {}: all."""
        return {}


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """`count` indices of `total` things, the first and the last among them."""
    return np.linspace(0, total - 1, count).round().astype(int)


class Subset(Source):
    """Some images of a source, in the order of `indices`."""

    def __init__(self, source, indices):
        super().__init__(source.num_classes, source.class_names)
        self.source = source
        self.indices = np.asarray(indices, np.int64)

    def __len__(self):
        return len(self.indices)

    def read(self, index):
        return self.source.read(int(self.indices[index]))

    def name(self, index):
        return self.source.name(int(self.indices[index]))

    def encoded(self, index):
        return self.source.encoded(int(self.indices[index]))

    def size(self, index):
        return self.source.size(int(self.indices[index]))

    @functools.cached_property
    def present_labels(self):
        return self.source.present_labels

    def inventory(self, indices):
        return self.source.inventory(self.indices[indices])

    def content(self, index):
        return self.source.content(int(self.indices[index]))

    @functools.cached_property
    def part(self):
        """{"part": hash of the places in the full source}, FNV-1a in hex digits."""
        source = self.source
        indices = self.indices
        while isinstance(source, Subset):
            indices = source.indices[indices]
            source = source.source
        power = np.uint64(1099511628211)
        total = np.uint64(14695981039346656037)
        with np.errstate(over="ignore"):
            for index in indices.astype(np.uint64):
                total = (total ^ index) * power
        return {"part": f"{int(total):016x}"}


class FileSource(Source):
    """Image files below `root`, read one by one; `labels` has one for each."""

    def __init__(self, root, files, labels, num_classes, class_names=None):
        super().__init__(num_classes, class_names)
        self.root = root
        # Every worker process has a copy: as bytes a million names take 50 MB, as
        # Python strings 130 MB.
        self.files = np.array([os.fsencode(file) for file in files])
        self.labels = np.asarray(labels, np.int32)

    def __len__(self):
        return len(self.files)

    def read(self, index):
        path = self.name(index)
        return decode.decode(path, path), int(self.labels[index])

    def name(self, index):
        return os.path.join(self.root, os.fsdecode(self.files[index]))

    def encoded(self, index):
        with open(self.name(index), "rb") as file:
            return file.read()

    def size(self, index):
        return decode.size(self.name(index))

    def inventory(self, indices):
        files = self.files[indices]
        yield b"\0".join(files.tolist())
        yield self.labels[indices].tobytes()
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            for sizes in pool.map(self._sizes, np.array_split(files, THREADS)):
                yield np.array(sizes, np.int64).tobytes()

    def content(self, index):
        try:
            return self.encoded(index)
        except OSError:  # one damaged file is left out, and does not end a run
            return b""

    def _sizes(self, files):
        """Sizes of files in bytes, -1 of one that cannot be looked at."""
        sizes = []
        root = os.fsencode(self.root)
        for file in files:
            try:
                sizes.append(os.stat(os.path.join(root, file)).st_size)
            except OSError:
                sizes.append(-1)
        return sizes


def check_num_classes(num_classes, classes, data):
    """Check that num_classes is what `data` has."""
    if num_classes not in (None, classes):
        raise InputError(
            f"num_classes is {num_classes}, but {data} has {classes} classes"
        )
