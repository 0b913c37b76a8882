"""Sources of images and labels by index: files, arrays, and subsets of a source.

One damaged file must not end a long run; many must: `Source.record_unreadable`.
"""

import abc
import copy
import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from imagepiece_jax.common import checks
from imagepiece_jax.common.files import AnyPath
from imagepiece_jax.data import decode
from imagepiece_jax.data.class_names import ClassNames
from imagepiece_jax.data.preprocessing import RgbPixels
from imagepiece_jax.errors import InputError

SPLIT_KINDS = ("train", "val")
# Split names in folders, tables and on the hub; no other name is guessed.
VALIDATION_NAMES = ("val", "valid", "validation")
SPLIT_NAMES = ("train", *VALIDATION_NAMES, "test")
MAX_UNREADABLE_IN_A_ROW = 20  # unreadable images in a row that stop a run
MAX_UNREADABLE_SHARE = 0.01  # largest unreadable share of a source before the run stops
SAMPLED_IMAGES = 64  # images that a digest reads: all images would take too long
FILE_THREADS = 16  # threads for file sizes and contents, which are slow over a network

log = logging.getLogger("imagepiece_jax.data")


class SourceImage(NamedTuple):
    """One image of a source."""

    pixels: RgbPixels | None  # None: unreadable
    label: int  # -1: no label
    name: str  # for logs: the file name, if there is a file
    damage: decode.UnreadableImage | None = None  # why `pixels` is None


@dataclasses.dataclass(frozen=True)
class SplitRequest:
    """A data set's split to open, as every function of `SOURCE_OPENERS` takes it.

    num_classes: None: as many as the data have
    class_names: a model's class names by label. A folder is named after a class or its
        WordNet ID; validation folders may cover some classes. None: labels follow
        all folders, sorted as text
    labeled: False: no labels are needed, and only imagenet2012 and digits read them
    data_dir: folder of TFDS's files, for imagenet2012
    """

    split: str  # in SPLIT_KINDS
    num_classes: int | None = None
    class_names: ClassNames | None = None
    labeled: bool = True
    data_dir: AnyPath | None = None

    def __post_init__(self) -> None:
        checks.check_choice("split", self.split, SPLIT_KINDS)


# (path, bytes or pixels; label; name)
StoredImage = tuple[str | bytes | np.ndarray, int, str]


class Source(abc.ABC):
    """Images and labels by index: `source[i]` is a SourceImage.

    A source holds a whole store, or a subset at `indices`. Subclasses implement
    `stored_image`.
    """

    indices: range | np.ndarray  # store index of every image
    num_classes: int
    class_names: ClassNames | None  # None: the data have no names
    labels: Any = None  # int32 of the whole store; None: the store lists no labels
    split: str = ""  # split name in the data, such as "valid"; "": no splits
    upright: bool = True  # whether the EXIF orientation is applied
    unreadable: dict[str, str]  # {damaged file: reason}, in order

    def __init__(
        self, length: int, num_classes: int = 0, class_names: ClassNames | None = None
    ) -> None:
        self.indices = range(length)
        self.num_classes = num_classes
        self.class_names = class_names
        self.unreadable = {}

    @abc.abstractmethod
    def stored_image(self, store_index: int) -> StoredImage:
        """The image at `store_index`."""

    def __len__(self) -> int:
        """Image count, damaged images included."""
        return len(self.indices)

    def __getitem__(self, index: int) -> SourceImage:
        picture, label, name = self._stored_image_at(index)
        if isinstance(picture, np.ndarray):
            return SourceImage(picture, label, name)
        try:
            pixels = decode.decode_image(picture, name, self.upright)
        except decode.UnreadableImage as damage:
            return SourceImage(None, label, name, damage)
        return SourceImage(pixels, label, name)

    def image_name(self, index: int) -> str:
        return self._stored_image_at(index)[2]

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits that identify images and labels.

        A changed image of equal size may be missed: only 64 images are read.
        """
        # Folders and file times are left out, because data get copied.
        num_sampled = min(len(self), SAMPLED_IMAGES)
        num_gaps = max(1, num_sampled - 1)
        last_index = len(self) - 1
        sampled_indices = [gap * last_index // num_gaps for gap in range(num_sampled)]
        return self._digest_with_content(sampled_indices)

    @functools.cached_property
    def whole_digest(self) -> str:
        """Like `digest`, but reads the content of all images."""
        return self._digest_with_content(range(len(self)))

    def _digest_with_content(self, content_indices):
        """16 hex digits: all images' identities, and the content at these indices."""
        source_hash = hashlib.sha256(str(len(self)).encode())
        for identity_part in self.identity_bytes(np.asarray(self.indices)):
            source_hash.update(hashlib.sha256(identity_part).digest())

        def label_and_digest(index):
            picture, label, _ = self._stored_image_at(index)
            return str(label).encode() + hashlib.sha256(_image_bytes(picture)).digest()

        with ThreadPool(FILE_THREADS) as pool:
            for content_bytes in pool.imap(label_and_digest, content_indices):
                source_hash.update(content_bytes)
        return source_hash.hexdigest()[:16]

    def identity_bytes(self, indices: np.ndarray) -> Iterator[bytes]:
        """Yield bytes that identify the images, without opening an image."""
        for store_index in indices.tolist():
            _, label, name = self.stored_image(store_index)
            yield f"{name} {label}".encode(errors="surrogateescape")

    def record_unreadable(
        self, recent_errors: Sequence[decode.UnreadableImage], consequence: str
    ) -> None:
        """Log every unreadable file once; raise InputError for too many.

        recent_errors: since the last readable image
        consequence: for the log, how the run continues
        """
        for error in recent_errors:
            if error.name not in self.unreadable:
                self.unreadable[error.name] = error.reason
                log.warning("%s: %s", error, consequence)
        are_too_many = len(self.unreadable) > MAX_UNREADABLE_SHARE * len(self)
        if are_too_many or len(recent_errors) >= MAX_UNREADABLE_IN_A_ROW:
            share_text = f"{len(self.unreadable)} of {len(self)} images"
            raise InputError(f"{recent_errors[0]}, as {share_text} cannot be read")

    def evenly_spaced(self, count: int | None) -> Self:
        """Take `count` evenly spaced images; all if count is None or not smaller."""
        if count is None or count >= len(self):
            return self
        return self.subset(evenly_spaced_indices(len(self), count))

    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Take the images at `indices`, in that order."""
        subset = copy.copy(self)
        # The copy has the cached digests of the whole source.
        for cached_name in ("digest", "whole_digest"):
            subset.__dict__.pop(cached_name, None)
        subset.indices = np.asarray(self.indices)[np.asarray(indices, np.int64)]
        subset.unreadable = {}
        return subset

    @property
    def subset_record(self) -> dict[str, str]:
        """{"part": FNV-1a hash of a subset's indices, hex}; {} for a whole source."""
        if isinstance(self.indices, range):
            return {}
        prime = np.uint64(1099511628211)  # both numbers are FNV-1a's for 64 bits
        index_hash = np.uint64(14695981039346656037)
        with np.errstate(over="ignore"):  # the product is taken modulo 2**64
            for index in self.indices.astype(np.uint64):
                index_hash = (index_hash ^ index) * prime
        return {"part": f"{int(index_hash):016x}"}

    def _stored_image_at(self, index):
        return self.stored_image(int(self.indices[index]))


def evenly_spaced_indices(length: int, count: int) -> np.ndarray:
    """`count` evenly spaced indices below `length`, first and last included."""
    return np.linspace(0, length - 1, count).round().astype(int)


def _image_bytes(picture):
    """Bytes of an image file or of pixels; empty if the file cannot be read."""
    if isinstance(picture, np.ndarray):
        return picture.tobytes()
    if isinstance(picture, bytes):
        return picture
    try:
        with open(picture, "rb") as file:
            return file.read()
    except OSError:  # one damaged file must not end a run
        return b""


class FileSource(Source):
    """Image files below `root`; labels -1: no labels."""

    def __init__(
        self, root: AnyPath, files: Sequence, labels: ArrayLike = -1, *classes: Any
    ) -> None:
        super().__init__(len(files), *classes)
        self.root = root
        # Bytes, because every worker process has a copy: a million names take 50 MB,
        # and 130 MB as Python strings.
        self.files = np.array([os.fsencode(file) for file in files])
        self.labels = np.full(len(files), labels, np.int32)

    def stored_image(self, store_index: int) -> StoredImage:
        path = os.path.join(self.root, os.fsdecode(self.files[store_index]))
        return path, int(self.labels[store_index]), path

    def identity_bytes(self, indices: np.ndarray) -> Iterator[bytes]:
        files = self.files[indices]
        yield b"\0".join(files.tolist())
        yield self.labels[indices].tobytes()
        paths = [os.path.join(os.fsencode(self.root), file) for file in files]
        yield read_file_sizes(paths).tobytes()


def read_file_sizes(paths: Sequence[str | bytes]) -> np.ndarray:
    """File sizes in bytes, int64; -1 for a file without access."""

    def file_size(path):
        try:
            return os.stat(path).st_size
        except OSError:
            return -1

    with ThreadPool(FILE_THREADS) as pool:
        return np.array(pool.map(file_size, paths), np.int64)


class ArraySource(Source):
    """Images in memory, whose sizes may differ; labels -1: no labels."""

    def __init__(
        self,
        images: Sequence[RgbPixels] | np.ndarray,  # an array is no Sequence
        labels: ArrayLike = -1,
        *classes: Any,
    ) -> None:
        super().__init__(len(images), *classes)
        self.images = images
        self.labels = np.full(len(images), labels, np.int32)
        self.names = [f"image {index}" for index in range(len(images))]

    def stored_image(self, store_index: int) -> StoredImage:
        label = int(self.labels[store_index])
        return self.images[store_index], label, self.names[store_index]


def find_splits(split_names: Collection[str], data_title: str) -> dict[str, str]:
    """Find splits: {"train" or "val": its name}; "test" may stand in for validation."""
    validation_names = [name for name in VALIDATION_NAMES if name in split_names]
    if len(validation_names) > 1:
        raise InputError(f"{data_title} has both {' and '.join(validation_names)}")
    candidates = {"train": ["train"], "val": validation_names or ["test"]}
    return {split: name for split, (name,) in candidates.items() if name in split_names}


def check_num_classes(num_classes: int | None, num_in_data: int, title: str) -> None:
    """Check `num_classes`, unless None, against the class count of the data."""
    if num_classes not in (None, num_in_data):
        classes_text = f"num_classes is {num_classes}, but {title} has {num_in_data}"
        raise InputError(f"{classes_text} classes")
