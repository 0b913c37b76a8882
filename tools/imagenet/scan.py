"""The images of ImageNet-1k and the position of their bytes in tars or other files.

An `Entry` says in which file and at which byte an encoded image starts, so that any
process can read any image on its own. Only parquet files are unpacked before.
"""

import concurrent.futures
import contextlib
import functools
import importlib.util
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import tarfile
import threading
from collections.abc import Callable
from typing import NamedTuple

from tqdm import tqdm

from imagepiece_jax.common.files import FolderLock
from imagepiece_jax.common.signals import blocked
from imagepiece_jax.data.class_names import imagenet_rows
from imagepiece_jax.data.decode import EXTENSIONS
from imagepiece_jax.errors import InputError, RunError
from tools.imagenet import parquet, shards, tfrecords, webdataset

# split: its tar, the folder that may stand in its place, its images
SPLITS = {
    "train": ("ILSVRC2012_img_train.tar", "train", 1_281_167),
    "validation": ("ILSVRC2012_img_val.tar", "val", 50_000),
}
NUM_CLASSES = 1000
NAME = "imagenet2012"  # of TFDS
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
# The same without an ending, or as the hub has it: n01440764_10026_n01440764.JPEG
OFFICIAL = re.compile(r"((n\d{8})_\d+|ILSVRC2012_val_(\d{8}))(_n\d{8})?(\.\w+)?")
RESUMES = "finished files stay, and the same command resumes"


class Entry(NamedTuple):
    """An encoded image: `size` bytes of `file` from byte `start` on."""

    name: str
    label: int
    file: str
    start: int
    size: int


class Room(NamedTuple):
    """Where the images of parquet files are unpacked, beside the set.

    stored: the bytes that the set will need for so many images of so many bytes: both
        must fit before anything is unpacked
    """

    folder: str
    stored: Callable[[int, int], float]


@functools.cache
def class_names():
    """WordNet IDs of the 1,000 classes in the order of their labels."""
    return _shipped("labels.txt")


@functools.cache
def validation_labels():
    """Labels of the 50,000 validation images in the order of their names."""
    labels = {name: label for label, name in enumerate(class_names())}
    return [labels[name] for name in _shipped("validation_labels.txt")]


def _shipped(name):
    """Lines of a file of TFDS's own imagenet2012, so that labels are the same."""
    import tensorflow_datasets as tfds

    return tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()


def find(
    source,
    partial=False,
    advance=lambda images: None,
    workers=0,
    patterns=None,
    room=None,
):
    """All images below the folder `source`.

    Each split is its ILSVRC2012 tar or a folder, train/WNID/IMAGE and val/WNID/IMAGE;
    val may also hold the images themselves under their official names. Or it is TFDS's
    imagenet2012 in TFRECORD files, whose checksums are verified. Or it is in the forms
    of the Hugging Face hub: tars of the webdataset format, or parquet files.

    partial: accept one split alone and fewer images than ImageNet has
    advance: called with numbers of images as they are read
    workers: processes that verify and unpack, 0 is this one
    patterns: {split: names of its files}, as `shards.find_shards` takes them
    room: the Room that parquet files are unpacked to
    Returns {"train": [Entry], "validation": [Entry]}.
    Raises InputError for anything else, RunError where a process dies.
    """
    source = os.path.expanduser(source)
    patterns = patterns or {}
    if not os.path.isdir(source):
        raise _refused(source, "is no folder", _accepted())
    tfrecord_files = tfrecords.find_tfrecords(source, NAME)
    shard_files, unknown = shards.find_shards(source, patterns, partial)
    splits = {}
    with _unpacking(shard_files, room):
        for split in SPLITS:
            reader, place = _original(split, source)
            if reader and not patterns.get(split):
                found = _read(reader, place, advance)
            elif split in shard_files:
                place = _folder(split, shard_files)
                jobs = _shard_jobs(split, shard_files[split], room)
                found = _entries_of(_shard, jobs, advance, workers)
            elif split in tfrecord_files:
                place = _folder(split, tfrecord_files)
                if importlib.util.find_spec("google_crc32c") is None:
                    problem = "has TFRECORD files, whose checksums need google-crc32c"
                    raise _refused(source, problem, hint="pip install google-crc32c")
                jobs = [(path,) for path in tfrecord_files[split]]
                found = _entries_of(_tfrecord, jobs, advance, workers)
            else:
                _check_absent(split, source, unknown, partial)
                continue
            _check_complete(split, place, found, partial)
            splits[split] = found
    if not splits:
        raise _refused(source, "has no ImageNet", _accepted())
    return splits


def _original(split, source):
    """(reader, path) of a split's tar or folder in `source`; (None, "") without."""
    tar, folder, _ = SPLITS[split]
    path = os.path.join(source, tar)
    if os.path.exists(path):
        return {"train": _train_tar, "validation": _val_tar}[split], path
    path = os.path.join(source, folder)
    if os.path.exists(path) and not shards.holds_shards(path):
        return {"train": _train_folder, "validation": _val_folder}[split], path
    return None, ""


def _folder(split, files):
    return f"{split} in {os.path.dirname(files[split][0])}"


def _check_absent(split, source, unknown, partial):
    """InputError where a split that was not found may not be missing."""
    if unknown:
        problem = f"has files of no split by their names, such as {unknown[0]}"
        allowed = "train, validation or val in the name of a file or of its folder"
        hint = f"or --{split}_files, a pattern of their names"
        raise _refused(source, problem, allowed, hint)
    if not partial:
        tar, folder, _ = SPLITS[split]
        problem = f"has neither {tar} nor a folder {folder} nor {split} in another form"
        allowed = f"both splits, as {_accepted()}; or one with --partial"
        raise _refused(source, problem, allowed)


def _refused(source, problem, allowed="", hint=""):
    """The InputError about --source."""
    clauses = [f"--source {source} {problem}", allowed, hint]
    return InputError("; ".join(clause for clause in clauses if clause))


def _accepted():
    tars = " and ".join(tar for tar, _, _ in SPLITS.values())
    return (
        f"{tars}, the folders train and val, webdataset tars or parquet files of train "
        f"and validation, or {NAME} in TFRECORD files"
    )


def _read(reader, path, advance):
    """The entries of a tar or a folder; InputError where it cannot be read."""
    entries = []
    try:
        for entry in reader(path):
            entries.append(entry)
            advance(1)
    except tarfile.TarError as error:
        raise InputError(
            f"{path} is not a complete tar file ({error}); fetch it again"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    return entries


def _entries_of(function, jobs, advance, workers):
    """The entries of all `jobs`, each a file's, as they end."""
    entries = []
    for of_file in run_jobs(function, jobs, workers):
        entries += of_file
        advance(len(of_file))
    return entries


def _shard_jobs(split, paths, room):
    """Arguments of `_shard` for each of the files."""
    return [(path, split, _unpacked(split, path, room)) for path in paths]


def _unpacked(split, path, room):
    """The file for the images of a parquet file; "" for a tar."""
    if not path.endswith(".parquet"):
        return ""
    return os.path.join(room.folder, f"{split}-{os.path.basename(path)}.images")


@contextlib.contextmanager
def _unpacking(files, room):
    """While entered, no other process unpacks to `room`, which has the space for it.

    files: {split: [path]}, of which those of parquet files are unpacked
    """
    jobs = []
    for split, paths in files.items():
        jobs += [job for job in _shard_jobs(split, paths, room) if job[2]]
    if not jobs:
        yield
        return
    parquet.check_installed()
    with FolderLock("--dir", room.folder):
        for name in os.listdir(room.folder):
            if name.endswith(".tmp"):  # of a run that was killed
                os.remove(os.path.join(room.folder, name))
        _check_room(jobs, room)
        yield


def _check_room(jobs, room):
    """InputError where there is no space for unpacked images and the set."""
    images = 0
    size = 0
    missing = 0
    for path, _, target in jobs:
        of_file, of_images = parquet.count(path)
        images += of_file
        size += of_images
        if not parquet.is_unpacked(path, target):
            missing += of_images
    if missing:
        check_space(room.folder, missing + room.stored(images, size))


def check_space(folder, needed):
    """Raises InputError where fewer than `needed` bytes are free in a folder."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder} has {tqdm.format_sizeof(free, 'B')} of free space"
            f"; allowed: {tqdm.format_sizeof(needed, 'B')} for the rest"
        )


def _shard(path, split, target):
    """Entries of a tar of webdataset or of a parquet file, which is unpacked."""
    try:
        if target:
            return _parquet(path, split, target)
        return _webdataset(path, split)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error


def _webdataset(path, split):
    """Entries of a tar of the webdataset format."""
    stem = os.path.splitext(os.path.basename(path))[0]
    entries = []
    for key, given, label, start, size in webdataset.read_samples(path):
        otherwise = f"{stem}_{key.replace('/', '_')}.JPEG"
        name = _checked_name(path, split, f"sample {key}", label, given, otherwise)
        entries.append(Entry(name, label, path, start, size))
    return entries


def _parquet(path, split, target):
    """Entries of a parquet file, unpacked into the file `target`."""
    stem = os.path.splitext(os.path.basename(path))[0]
    _check_class_names(path, parquet.class_names(path))
    entries = []
    start = 0
    for number, (given, label, size) in enumerate(parquet.unpack(path, target)):
        otherwise = f"{stem}_{number:06d}.JPEG"
        name = _checked_name(path, split, f"row {number:,}", label, given, otherwise)
        entries.append(Entry(name, label, target, start, size))
        start += size
    return entries


def _check_class_names(path, names):
    """InputError where `names` of labels, None for none, are not ImageNet-1k's."""
    if names is None:
        return
    allowed = "ImageNet-1k's, in the order of their WordNet IDs"
    if len(names) != NUM_CLASSES:
        raise InputError(f"{path} has {len(names):,} classes; allowed: {allowed}")
    lemmas = [words for _, words in imagenet_rows()]
    for label, (own, found) in enumerate(zip(lemmas, names, strict=True)):
        if found != own and found in lemmas:  # the hub has some other words
            raise InputError(
                f"{path}: label {label} is {found!r}, which is another class than "
                f"{own!r}; allowed: {allowed}"
            )


def _checked_name(path, split, image, label, given, otherwise):
    """The name of an image, its official one where `given` has that.

    An official name says the label: InputError where it is another.

    image: which one of the file it is, in words for errors
    given: a name that the file has for it, or None
    otherwise: a name that no other image of the split has
    """
    classes = class_names()
    if not 0 <= label < len(classes):
        raise InputError(
            f"{path}: {image} has label {label}; allowed: 0..{len(classes) - 1}"
        )
    match = OFFICIAL.fullmatch(os.path.basename(given or ""))
    if not match:
        return otherwise
    stem = match[1]
    wnid = match[2]
    number = match[3]
    name = f"{stem}.JPEG"
    if number and split == "train":
        raise InputError(f"{path}: {image} is {name}; allowed: training images")
    if number:
        true_label = _numbered(path)(name)
    elif wnid in classes:
        true_label = classes.index(wnid)
    else:
        raise _other(path, name, "classes of ImageNet-1k, such as n01440764")
    if true_label != label:
        raise InputError(
            f"{path}: {image} is {name} and has label {label}, {classes[label]}"
            f"; allowed: {true_label}, {classes[true_label]}"
        )
    return name


def _tfrecord(path):
    """Entries of a TFRECORD file, in which images lie as they were."""
    entries = []
    try:
        for start, data, features in tfrecords.read_examples(path):
            try:
                (image,) = features["image"].bytes_list.value
                (name,) = features["file_name"].bytes_list.value
                (label,) = features["label"].int64_list.value
                name = name.decode()
            except ValueError:
                label = -1
            if not 0 <= label < NUM_CLASSES:
                raise InputError(
                    f"{path} has a record of something else at byte {start:,}"
                    f"; allowed: {NAME} of TFDS: image, file_name and a label of "
                    f"0..{NUM_CLASSES - 1}"
                )
            place = start + data.find(image)
            entries.append(Entry(name, label, path, place, len(image)))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    return entries


def _check_complete(split, path, entries, partial):
    """Raise InputError where images or classes of a split are missing."""
    if not entries:
        raise InputError(f"{path} has no image of ImageNet")
    complete = SPLITS[split][2]
    classes = len({entry.label for entry in entries})
    if not partial and (len(entries), classes) != (complete, NUM_CLASSES):
        raise InputError(
            f"{path} has {len(entries):,} images of {classes:,} classes"
            f"; allowed: {complete:,} of {NUM_CLASSES:,}, or fewer with --partial"
        )


def _other(place, name, allowed, hint=""):
    return InputError(f"{place} has {name!r}; allowed: {allowed}; {hint}")


def _train_tar(path):
    """A tar of tars, each named by its class."""
    labels = {name: label for label, name in enumerate(class_names())}
    with tarfile.open(path, "r:") as outer:
        for member in _members(outer):
            wnid, suffix = os.path.splitext(os.path.basename(member.name))
            if wnid not in labels or suffix != ".tar":
                raise _other(path, member.name, "tars named as n01440764.tar")
            with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                for image in _members(inner):
                    name = os.path.basename(image.name)
                    if not re.fullmatch(rf"{wnid}_\d+\.JPEG", name):
                        place = f"{path}, {member.name}"
                        allowed = f"{wnid}_1.JPEG"
                        raise _other(place, image.name, f"images named as {allowed}")
                    start = member.offset_data + image.offset_data
                    yield Entry(name, labels[wnid], path, start, image.size)


def _val_tar(path):
    """A tar of images, whose labels follow from their numbers."""
    label_of = _numbered(path)
    with tarfile.open(path, "r:") as tar:
        for image in _members(tar):
            name = os.path.basename(image.name)
            yield Entry(name, label_of(name), path, image.offset_data, image.size)


def _members(tar):
    """Files of an open tar; TarError where it ends early.

    Python's reader takes damage between two members for the end of the tar; but what
    stands there must be zeros or nothing.
    """
    yield from (member for member in tar if member.isfile())
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"damaged at byte {tar.offset:,}")


def _train_folder(path):
    """Folders of images, each named by its class."""
    labels = {name: label for label, name in enumerate(class_names())}
    for folder in _entries(path):
        if not folder.is_dir():
            continue
        if folder.name not in labels:
            allowed = "classes of ImageNet-1k, such as n01440764"
            hint = "train on other sets as they are, config.data.name=folder:PATH"
            raise _other(path, folder.name, allowed, hint)
        for image in _images(folder.path):
            yield _of_file(image, labels[folder.name])


def _val_folder(path):
    """Folders of images as for training, or images whose labels follow from numbers."""
    label_of = _numbered(path)
    loose = _images(path)
    if not loose:
        yield from _train_folder(path)
    for image in loose:
        yield _of_file(image, label_of(image.name))


def _numbered(path):
    """The function from the official name of a validation image to its label."""
    labels = validation_labels()

    def label_of(name):
        match = VAL_NAME.fullmatch(name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(labels):
            last = f"ILSVRC2012_val_{len(labels):08d}.JPEG"
            allowed = f"ILSVRC2012_val_00000001.JPEG to {last}"
            raise _other(path, name, allowed)
        return labels[number - 1]

    return label_of


def _entries(path):
    with os.scandir(path) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(found, key=lambda entry: entry.name)


def _images(path):
    return [
        entry
        for entry in _entries(path)
        if entry.name.lower().endswith(EXTENSIONS) and entry.is_file()
    ]


def _of_file(image, label):
    return Entry(image.name, label, image.path, 0, image.stat().st_size)


def run_jobs(function, jobs, workers):
    """Yield function(*job) for each of `jobs`, as processes finish them.

    workers: processes, 0 is this one; none is left behind
    Raises RunError where a process dies.
    """
    if workers == 0:
        yield from itertools.starmap(function, jobs)
        return
    # A forked process would inherit the locks of this one's threads.
    context = multiprocessing.get_context("spawn")
    before = multiprocessing.active_children()
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker)
    try:
        with blocked(signal.SIGINT):  # which is for this process to handle
            pending = [pool.submit(function, *job) for job in jobs]
        for future in concurrent.futures.as_completed(pending):
            yield future.result()
    except concurrent.futures.BrokenExecutor as error:
        raise RunError(
            f"a worker process has died, perhaps for lack of memory: {RESUMES}, with "
            "fewer --processes"
        ) from error
    finally:
        started = set(multiprocessing.active_children()) - set(before)
        pool.shutdown(wait=False, cancel_futures=True)
        for process in started:
            process.terminate()
            process.join()


def _start_worker():
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    """The parent may end in any way, by SIGKILL too."""
    multiprocessing.parent_process().join()
    os._exit(1)
