"""Sources of images and labels: ImageNet, folders, tables, digits.

`open_source(name, split, ...)` checks everything that can be checked without decoding
and returns a `Source`, an indexed collection of (RGB image, label). Nothing here knows
batches, epochs or augmentation.
"""

import abc
import concurrent.futures
import csv
import functools
import gzip
import hashlib
import io
import logging
import os
import pathlib
import re
import reprlib
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from imagepiece_jax.data import decode, records
from imagepiece_jax.data.decode import EXTENSIONS, Unreadable
from imagepiece_jax.errors import InputError, one_of, within

KNOWN_NAMES = ("imagenet2012", "digits", "folder:PATH", "csv:FILE")
SPLITS = ("train", "val")
SAMPLE = 64  # images that are read where a whole set would take too long
THREADS = 16  # that ask for sizes of files, which takes long over a network

log = logging.getLogger("imagepiece_jax.data")


class Source(abc.ABC):
    """Images and labels by index. `unreadable` is the record of its damaged files.

    class_names: a name or None for each class; None where the data names no classes
    """

    def __init__(self, num_classes, class_names=None):
        self.num_classes, self.class_names = num_classes, class_names
        self.unreadable = Unreadable()

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
        """Bytes of image `index` as stored. Raises InputError where it is in memory."""
        raise InputError("is not a file, but pixels in memory", place=self.name(index))

    def size(self, index: int) -> tuple[int, int] | None:
        """(height, width) of image `index` by its header; None if it is unreadable."""
        return decode.size(io.BytesIO(self.encoded(index)))

    def some_sizes(self) -> list[tuple[int, int]]:
        """`size` of up to 64 readable images, spread over the source."""
        return [*filter(None, map(self.size, self._sample()))]

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits that tell these images and labels from others.

        It is made from the names in the set, labels, sizes in bytes and the content of
        64 images, evenly spread: a corrected label and replaced images show, without
        reading the whole set. Times and the folder do not count: data gets copied.
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
        """What tells these images from others without reading them, for `digest`."""
        yield "\0".join(self.name(int(index)) for index in indices).encode(
            errors="surrogateescape"
        )

    def content(self, index: int) -> bytes:
        """Bytes that hold image `index`; empty where its file cannot be read."""
        return self.read(index)[0].tobytes()

    def try_first(self, transform, **options):
        """Raise InputError where the first readable image does not fit `transform`."""
        for index in range(min(len(self), decode.MAX_IN_A_ROW)):
            try:
                image, _ = self.read(index)
            except decode.UnreadableImage:
                continue
            with within(place=self.name(index)):
                transform(image, **options)
            return

    def spread(self, count: int | None) -> "Source":
        """`count` images, evenly spaced; all of a smaller source, and for None."""
        if count is None or count >= len(self):
            return self
        return Subset(self, np.linspace(0, len(self) - 1, count).round())

    @property
    def part(self) -> dict[str, str]:
        """What tells this part of a larger source from others, as JSON values."""
        return {}


class Subset(Source):
    """Some images of a source, in the order of `indices`."""

    def __init__(self, source, indices):
        super().__init__(source.num_classes, source.class_names)
        self.source, self.indices = source, np.asarray(indices, np.int64)

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

    def inventory(self, indices):
        return self.source.inventory(self.indices[indices])

    def content(self, index):
        return self.source.content(int(self.indices[index]))

    @functools.cached_property
    def part(self):
        """FNV-1a hash, word by word, of the places in the full source: hex digits."""
        source, indices = self.source, self.indices
        while isinstance(source, Subset):
            source, indices = source.source, source.indices[indices]
        power = np.uint64(1099511628211)
        total = np.uint64(14695981039346656037)
        with np.errstate(over="ignore"):
            for index in indices.astype(np.uint64):
                total = (total ^ index) * power
        return {"part": f"{int(total):016x}"}


def open_source(
    name: str,
    split: str,
    *,
    num_classes: int | None = None,
    data_dir: str | os.PathLike | None = None,
    labeled: bool = True,
    labels_by_name: Mapping[str, int] | None = None,
) -> Source:
    """The `Source` of a split that `config.data.name` asks for.

    imagenet2012    ImageNet-1k as TFDS's array_record files in `data_dir`, which
                    `python -m tools.prepare_imagenet` writes
    digits          1,797 handwritten digits, 16x16, inside the package
    folder:PATH     PATH/train/CLASS/..., PATH/val/CLASS/...; classes sorted by name
    csv:FILE        see `read_csv`; paths relative to FILE

    name: one of these
    split: "train" or "val"
    num_classes: None is as many as there are
    labeled: whether training images have labels; else theirs are -1, whatever a table
    says, and those of a folder may be anywhere in PATH/train
    labels_by_name: labels of a model of `num_classes`, by names that the folders of its
    classes may have; where all folders have one, they decide, and some classes may have
    none
    Raises InputError for an unknown name, for missing, empty or unreadable files and
    for labels that do not fit `num_classes`.
    """
    one_of("split", split, dict.fromkeys(SPLITS))
    kind, _, path = name.partition(":")
    path = os.path.expanduser(path)
    if name == "imagenet2012":
        return _open_imagenet(split, num_classes, data_dir)
    if name == "digits":
        return _open_digits(split, num_classes)
    if kind == "folder" and path:
        return _open_folder(path, split, num_classes, labeled, labels_by_name)
    if kind == "csv" and path:
        return _open_csv(path, split, num_classes, labeled)
    path = os.path.expanduser(name)
    kind = "folder:" * os.path.isdir(path) or "csv:" * os.path.isfile(path)
    raise InputError(
        field="config.data.name",
        value=name,
        allowed=", ".join(KNOWN_NAMES),
        hint=f"did you mean {kind}{name}?" if kind else "",
    )


def _check_classes(num_classes, classes, data):
    if num_classes not in (None, classes):
        problem = f"is {num_classes}, but {data} has {classes} classes"
        raise InputError(problem, field="config.num_classes", value=num_classes)


def _no_image(folder):
    allowed = ", ".join(EXTENSIONS)
    return InputError("holds no image", place=f"folder {folder}", allowed=allowed)


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
        """Sizes of files in bytes, -1 of one that is not there."""
        sizes, root = [], os.fsencode(self.root)
        for file in files:
            try:
                sizes.append(os.stat(os.path.join(root, file)).st_size)
            except OSError:
                sizes.append(-1)
        return sizes


def _open_folder(root, split, num_classes, labeled, labels_by_name):
    classes = _class_names(root, split if labeled else "val")
    other = SPLITS[1 - SPLITS.index(split)]
    if labeled and os.path.isdir(os.path.join(root, other)):
        difference = set(classes) ^ set(_class_names(root, other))
        if difference:
            raise InputError(
                f"has class {min(difference)!r} in only one of train and val",
                place=f"folder {root}",
                allowed="the same classes in both",
            )
        _check_apart(root, classes)
    # Names of folders may be any bytes; those of classes are printed.
    shown = [os.fsencode(name).decode("utf-8", "replace") for name in classes]
    class_labels = _labels(root, shown, num_classes, labels_by_name or {})
    num_classes = num_classes or len(classes)
    by_label = dict(zip(class_labels, shown, strict=True))
    shown = tuple(by_label.get(label) for label in range(num_classes))
    if split == "train" and not labeled:
        files = _unlabeled_files(root)
        return FileSource(root, files, [-1] * len(files), num_classes, shown)
    files, labels, left_out = [], [], []
    for label, name in zip(class_labels, classes, strict=True):
        folder = os.path.join(root, split, name)
        images = []
        for entry in _entries(folder):
            image = entry.name.lower().endswith(EXTENSIONS) and _leads_to(entry.is_file)
            (images if image else left_out).append(entry.name if image else entry.path)
        if not images:
            raise _no_image(folder)
        files += [os.path.join(split, name, file) for file in images]
        labels += [label] * len(images)
    if left_out:
        log.warning(
            "%s: %d entries are left out, the first is %s: images are files that end "
            "in %s",
            os.path.join(root, split),
            len(left_out),
            left_out[0],
            ", ".join(EXTENSIONS),
        )
    return FileSource(root, files, labels, num_classes, shown)


def _labels(root, names, num_classes, labels_by_name):
    """The label of each folder: by its name, if all have one, else by their order."""
    labels = [labels_by_name.get(name) for name in names]
    if None not in labels and len({*labels}) == len(labels) > 0:
        return labels
    unknown = [n for n, label in zip(names, labels, strict=True) if label is None]
    if num_classes not in (None, len(names)) and 0 < len(unknown) < len(names):
        raise InputError(
            f"has class {unknown[0]!r}, which is not one of the model's {num_classes}, "
            f"as {len(names) - len(unknown)} others are",
            place=f"folder {root}",
            allowed="names of its classes, or a folder for each",
        )
    _check_classes(num_classes, len(names), f"folder {root}")
    return [*range(len(names))]


def _class_names(root, split):
    folder = os.path.join(root, split)
    names = [entry.name for entry in _entries(folder) if _leads_to(entry.is_dir)]
    if not names:
        allowed = "one folder of images for each class"
        raise InputError("is empty", place=f"folder {folder}", allowed=allowed)
    return names


def _check_apart(root, classes):
    """InputError where two of all folders of images are one, by a symbolic link."""
    seen = {}
    for split in SPLITS:
        for name in classes:
            folder = os.path.join(root, split, name)
            first = seen.setdefault(os.path.realpath(folder), folder)
            if first != folder:
                raise InputError(
                    f"is the same as {first}, by a link",
                    place=f"folder {folder}",
                    hint="each class needs images of its own, in train and in val",
                )


def _entries(folder):
    """Entries of a folder sorted by name, hidden ones left out."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})",
            place=f"folder {folder}",
            hint="folder:PATH needs PATH/train and PATH/val with one folder of images "
            "for each class",
        ) from error
    return sorted(shown, key=lambda entry: entry.name)


def _leads_to(kind):
    """`kind()`, an entry's is_file or is_dir; False for links that lead nowhere."""
    try:
        return kind()
    except OSError:  # a loop of links, or a target in a folder that cannot be read
        return False


def _unlabeled_files(root):
    """All images in the folder root/train, by name, relative to `root`.

    InputError where there are none, and where a folder is root/val or in it, by a link.
    """
    folder, tested = (os.path.join(root, split) for split in SPLITS)
    tested_on, seen, files = os.path.realpath(tested), set(), []
    for path, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()  # a link to what has been read
            continue
        seen.add(real)
        if os.path.commonpath((real, tested_on)) == tested_on:
            raise InputError(
                f"is a part of {tested}, by a link",
                place=f"folder {path}",
                hint="training needs images of its own",
            )
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [
            os.path.relpath(os.path.join(path, name), root)
            for name in sorted(names)
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    if not files:
        raise _no_image(folder)
    return files


def own_files(name: str) -> list[str]:
    """Files of the data `name` that must not be overwritten, beside images."""
    kind, _, path = name.partition(":")
    return [os.path.expanduser(path)] if kind == "csv" else []


def _open_csv(path, split, num_classes, labeled):
    table = read_csv(path, split, num_classes, labeled)
    return FileSource(os.path.dirname(path), *table)


class ArraySource(Source):
    """Images [N, H, W, 3] uint8 that are in memory."""

    def __init__(self, images, labels, names, num_classes, class_names=None):
        super().__init__(num_classes, class_names)
        self.images = images
        self.labels = labels
        self.names = names

    def __len__(self):
        return len(self.images)

    def read(self, index):
        return self.images[index], int(self.labels[index])

    def size(self, index):
        return self.images.shape[1:3]

    def name(self, index):
        return self.names[index]

    def inventory(self, indices):
        yield from super().inventory(indices)
        yield np.asarray(self.labels)[indices].astype(np.int32).tobytes()


def _open_digits(split, num_classes):
    _check_classes(num_classes, 10, "data set digits")
    pixels, labels = _digits()
    chosen = np.flatnonzero(_held_out(labels) == (split == "val"))
    images = np.stack([_enlarged(pixels[index]) for index in chosen])
    names = [f"digits/{index:04d}" for index in chosen]
    return ArraySource(images, labels[chosen], names, 10, tuple(map(str, range(10))))


def _digits():
    """Images [1797, 8, 8] from 0 to 16 and labels; digits.txt says whose they are."""
    with gzip.open(pathlib.Path(__file__).parent / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, np.int32, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1]


def _held_out(labels):
    """True for a fifth of every class, the same in every run and on every machine.

    RandomState, because NumPy has frozen its streams for good; a Generator's
    permutation may change with a release, and the split with it.
    """
    draw = np.random.RandomState(0)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        held_out[members[: round(len(members) / 5)]] = True
    return held_out


def _enlarged(digit):
    """8x8 values 0..16 -> 16x16x3 uint8, bicubic as one would enlarge a photograph."""
    gray = Image.fromarray(np.round(digit * (255 / 16)).astype(np.uint8))
    large = np.asarray(gray.resize((16, 16), Image.Resampling.BICUBIC))
    return np.repeat(large[:, :, None], 3, axis=2)


class RecordSource(Source):
    """Records of TFDS's imagenet2012: serialized examples with encoded images."""

    def __init__(self, serialized, num_classes, class_names=None):
        super().__init__(num_classes, class_names)
        self.serialized = serialized

    def __len__(self):
        return len(self.serialized)

    def read(self, index):
        features = self._features(index)
        (label,) = features["label"].int64_list.value
        pixels = decode.decode(
            io.BytesIO(_bytes(features, "image")), _file_name(features)
        )
        return pixels, label

    def name(self, index):
        return _file_name(self._features(index))

    def encoded(self, index):
        return _bytes(self._features(index), "image")

    def inventory(self, indices):
        yield self.serialized.inventory()
        if len(indices) < len(self):
            yield indices.tobytes()

    def content(self, index):
        return self.serialized[index]

    def _features(self, index):
        return records.parse_example(self.serialized[index])


def _file_name(features):
    return _bytes(features, "file_name").decode()


def _bytes(features, name):
    (value,) = features[name].bytes_list.value
    return value


@functools.cache  # once, though a run opens two splits
def _warn_shrunk(folder, short_side):
    log.warning(
        "%s: images are not ImageNet's files but shrunk to short side %d",
        folder,
        short_side,
    )


def _open_imagenet(split, num_classes, data_dir):
    import tensorflow_datasets as tfds  # slow to import, and only this source needs it

    _check_classes(num_classes, 1000, "data set imagenet2012")
    tfds_split = {"train": "train", "val": "validation"}[split]
    try:
        builder = tfds.builder(
            "imagenet2012", data_dir=data_dir, file_format="array_record"
        )
        if builder.info.splits and tfds_split not in builder.info.splits:
            raise InputError(
                f"has no split {tfds_split}",
                place=builder.data_path,
                hint="prepare a --source that has both into a new folder",
            )
        files = builder.info.splits[tfds_split].file_instructions
        stored = records.ArrayRecords([(file.filename, file.take) for file in files])
        names = builder.info.features["label"].names  # WordNet IDs
        source = RecordSource(stored, 1000, tuple(names))
        source.encoded(0)  # a missing or torn file shows only when it is read
    except InputError:
        raise
    except Exception as error:  # TFDS has no error of its own for "not prepared"
        where = data_dir or tfds.core.constants.DATA_DIR
        raise InputError(
            f"is 'imagenet2012', but config.data.dir {where} does not hold it as "
            "complete array_record files",
            field="config.data.name",
            value="imagenet2012",
            hint=f"`python -m tools.prepare_imagenet --source FOLDER --dir {where}` in "
            "a clone makes them from the ILSVRC2012 tars or TFRECORD files in FOLDER; "
            "`python train.py --config configs/quickstart.py` runs without it",
        ) from error
    note = dict(builder.info.metadata.items())
    if note.get("short_side"):
        _warn_shrunk(builder.data_path, note["short_side"])
    return source


def short_name(name: str) -> str:
    """Name of a data set without this machine's folders: "csv:photos/labels.csv"."""
    kind, colon, path = name.partition(":")
    return kind + colon + "/".join(pathlib.Path(path).parts[-2:])


NEEDED, OPTIONAL = ("filename", "label"), ("split", "class")


class Table(NamedTuple):
    """One split. class_names: a name or None for each class, or None without names."""

    files: list[str]
    labels: list[int]
    num_classes: int
    class_names: tuple[str | None, ...] | None


class _Row(NamedTuple):
    line: int
    label: int
    split: str


class _Name(NamedTuple):
    name: str
    line: int


def read_csv(
    path: str, split: str, num_classes: int | None = None, labeled: bool = True
) -> Table:
    """The rows of one split of a CSV file in UTF-8.

    Its columns are `filename`, relative to the file's folder; `label`, a whole number
    from 0; and, where wanted, `split`, train or val, and `class`, the name of the
    label's class. Without `split` every row is a test image, and nothing can be trained
    on. All rows are checked, of the other split all but the existence of the file.

    split: "train" or "val"
    num_classes: None is as many as the labels of both splits need
    labeled: whether training images have labels, else -1
    Raises InputError naming the line for what cannot be read, a label outside the
    classes, a label with two class names, an image in both splits or twice in the test,
    and for a training split that lacks a class.
    """
    files, labels, highest = [], [], -1
    repeats, names = _Repeats(os.path.dirname(path)), {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, restval="")
            has_split = _check_columns(path, split, table)
            for fields in table:
                if any(fields.get(None, ())):  # a comma at the end is harmless
                    raise InputError(
                        f"has more fields than the {len(table.fieldnames)} columns",
                        hint="text with a comma must stand in double quotes",
                    )
                part = (fields["split"] or "").strip() if has_split else "val"
                one_of("split", part, dict.fromkeys(SPLITS))
                has_label = labeled or part == "val"
                label = _label(fields["label"], num_classes) if has_label else -1
                row = _Row(table.line_num, label, part)
                highest = max(highest, row.label)
                if row.split == split:
                    _check_file(fields["filename"], path)
                    files.append(fields["filename"])
                    labels.append(row.label)
                repeats.check(fields["filename"] or "", row)
                if has_label and "class" in fields:
                    _note_name(names, row, fields["class"])
    except InputError as error:  # of a row
        error.place = error.place or f"{path} line {table.line_num}"
        raise
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise InputError(problem, place=path) from error
    except (UnicodeDecodeError, csv.Error) as error:
        problem = f"is not a CSV file in UTF-8 ({error})"
        raise InputError(problem, place=path) from error
    if highest < 0:
        raise InputError("has no rows", place=path, allowed="at least one image")
    if not files:
        problem, hint = f"has no row with split {split!r}", "each split needs images"
        raise InputError(problem, place=path, hint=hint)
    num_classes = num_classes or highest + 1
    if split == "train" and labeled:
        _check_every_class(path, labels, num_classes)
    class_names = None
    if names:
        noted = map(names.get, range(num_classes))
        class_names = tuple(note and note.name for note in noted)
    return Table(files, labels, num_classes, class_names)


class _Repeats:
    """Find images that are named again, but for training images of one label.

    Training may see an image more often than others.
    """

    def __init__(self, root):
        self._root, self._folders, self._seen = root, {}, {}

    def check(self, file, row):
        """InputError where `file` was in an earlier row and may not be in this one."""
        folder, _, name = file.rpartition("/")
        if folder not in self._folders:  # links are looked up once per folder
            path = os.path.join(self._root, file)
            self._folders[folder] = os.path.realpath(os.path.dirname(path))
        first = self._seen.setdefault((self._folders[folder], name), row)
        if first is row or (first[1:] == row[1:] and row.split == "train"):
            return
        if first.split != row.split:
            fault = "an image must not be in both train and val"
        elif first.label != row.label:
            fault = f"its labels differ, {first.label} and {row.label}"
        else:
            fault = "a test image must count once"
        raise InputError(
            f"names {file!r} again (line {first.line})", value=file, hint=fault
        )


def _check_columns(path, split, table):
    """Whether there is a split; blanks around the names of columns are removed."""
    table.fieldnames = [name.strip() for name in table.fieldnames or ()]
    for name in (*NEEDED, *OPTIONAL):
        if table.fieldnames.count(name) > 1:
            raise InputError(f"has more than one column {name!r}", place=path)
    missing = set(NEEDED) - set(table.fieldnames)
    if missing:
        columns = reprlib.repr(table.fieldnames)[1:-1] or "none"
        raise InputError(
            f"has no column {min(missing)!r} (found: {columns})",
            place=path,
            allowed="the columns filename and label, separated by commas",
        )
    has_split = "split" in table.fieldnames
    if split == "train" and not has_split:
        raise InputError(
            "has no column 'split', so its images can only be tested on",
            place=path,
            hint="to train, add the column, with train or val in every row",
        )
    return has_split


def _label(text, num_classes):
    # Stricter than int(), which also takes 1_0 and digits of other scripts.
    label = int(text) if re.fullmatch(r"\s*[0-9]{1,9}\s*", text or "") else -1
    if label < 0 or (num_classes and label >= num_classes):
        allowed = "the whole numbers from 0"
        if num_classes:
            allowed += f" to {num_classes - 1} (config.num_classes is {num_classes})"
        raise InputError(field="label", value=text, allowed=allowed)
    return label


def _check_file(name, path):
    if not name or not os.path.isfile(os.path.join(os.path.dirname(path), name)):
        raise InputError(
            f"is {name!r}, which is not a file",
            field="filename",
            value=name,
            allowed=f"paths relative to {path}",
        )


def _note_name(names, row, text):
    """Remember a label's class name; a label that has another one is an InputError."""
    name = (text or "").strip()
    if not name:
        raise InputError(field="class", value=name, allowed="a name in every row")
    first = names.setdefault(row.label, _Name(name, row.line))
    if name != first.name:
        raise InputError(
            f"is {name!r} for label {row.label}, but {first.name!r} in line "
            f"{first.line}; a label has one name",
            field="class",
            value=name,
        )


def _check_every_class(path, labels, num_classes):
    present = set(labels)
    for label in range(num_classes):
        if label not in present:
            raise InputError(
                f"has no training image with label {label}",
                place=path,
                hint=f"each of the {num_classes} classes needs some",
            )


def find_images(words: list[str]) -> list[pathlib.Path]:
    """The files that `words` name; a folder stands for its images, in order of name.

    Raises InputError where there is none.
    """
    if not words:
        raise InputError("no image is named", allowed="image files and folders")
    files = []
    for path in map(pathlib.Path, words):
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(f for f in path.iterdir() if f.suffix.lower() in EXTENSIONS)
        if not inside:
            error = _no_image(path)
            error.allowed += " in the folder itself"
            raise error
        files += inside
    return files


def sizes_note(files: list[pathlib.Path], transform) -> str | None:
    """`transform.note` of the readable images among `files`, upright as they are shown.

    Sizes are those that are stored, so images on their side have another.
    """
    return transform.note(filter(None, map(decode.size, files)), len(files))


def read_images(files: list[pathlib.Path], transform) -> tuple[np.ndarray, list[str]]:
    """The readable images among `files`; why others are left out is printed.

    Returns (uint8 [B, H, W, 3], their names).
    Raises InputError if no image is left, and for one that does not fit `transform`.
    """
    images, names = [], []
    for file in files:
        if not file.is_file():
            print(f"{file} is left out: no such file", file=sys.stderr)
            continue
        try:
            image = decode.decode(file, str(file), upright=True)
        except decode.UnreadableImage as error:
            print(f"{error.name} is left out: {error.reason}", file=sys.stderr)
            continue
        with within(place=file):
            images.append(transform(image))
        names.append(file.name)
    if not images:
        problem = f"none of {len(files)} files can be read, the first is {files[0]}"
        raise InputError(problem, allowed="images")
    return np.stack(images), names
