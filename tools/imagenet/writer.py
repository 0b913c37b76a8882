"""ImageNet written as a TFDS data set in array_record files.

The set is imagenet2012 as TFDS itself would write it: the same features, the same
number of files, the same order of records. Which images a file holds is known before
any is written, and a file's report is written after the file: a run that was stopped
resumes with the files that have no report. Until all are there they lie in a folder
that no reader takes for a data set.
"""

import functools
import hashlib
import io
import itertools
import json
import os
import pathlib
import shutil
import tempfile

from PIL import Image
from tqdm import tqdm

from imagepiece_jax.common.files import FolderLock, replace_file
from imagepiece_jax.data.decode import UnreadableImage, decode, record_unreadable
from imagepiece_jax.errors import InputError, RunError
from tools.imagenet import tfrecords
from tools.imagenet.scan import NAME, RESUMES, Room, check_space, run_jobs

# JPEG quality: 92 keeps 36-38 dB of photographs of short side 256, 30 KB each.
QUALITY = 92
QUALITY_UNRESIZED = 100  # where only the format changes
LONGEST_JPEG = 65_500  # pixels a side, by libjpeg
# Of an unfinished set.
SETTINGS = "settings.json"
REPORTS = "reports"
UNPACKED = "unpacked"
AS_BY_TFDS = {"short_side": 0, "quality": None, "reencoded": 0, "left_out": []}
AS_BY_TFDS["classes"] = {}  # of each split, where they were counted
# Photographs of short side s have about 4/3 s^2 pixels, of 0.3 to 0.35 bytes each.
BYTES_PER_PIXEL = 0.4
MARGIN = 1.01  # what files of records need beside the images


def existing(data_dir):
    """The metadata of the complete set in the folder `data_dir`.

    Returns None without one, else a dict: folder; splits, for each the numbers of
    images, files and bytes; and what `write` noted: short_side and quality (0 and None
    where the images are the original files), reencoded (how many became RGB JPEGs),
    left_out (the names of damaged images) and classes (how many each split has).
    Raises InputError for a set that is not made of array_record files.
    """
    target = _builder(data_dir)
    if not target.data_path.exists():
        return None
    if not target.info.splits:
        place = target.data_path
        raise InputError(f"{place} has no data set; choose another --dir, or remove it")
    splits = {
        name: (split.num_examples, split.num_shards, split.num_bytes)
        for name, split in target.info.splits.items()
    }
    facts = {"folder": str(target.data_path), "splits": splits}
    return facts | AS_BY_TFDS | dict(target.info.metadata.items())


def summary(data_dir, note):
    """Lines about a complete set, of which `note` is from `existing`."""
    rows = {"complete": note["folder"]}
    for split, (images, files, size) in note["splits"].items():
        classes = note["classes"].get(split)
        of_classes = f" of {classes:,} classes" if classes else ""
        text = f"{images:,} images{of_classes} in {files} files, "
        rows[split] = text + tqdm.format_sizeof(size, "B")
    if note["short_side"]:
        text = f"at most {note['short_side']} pixels, JPEG quality {note['quality']}"
        rows["short side"] = text
    if note["reencoded"]:
        rows["re-encoded"] = f"{note['reencoded']:,} images"
    if note["left_out"]:
        names = ", ".join(note["left_out"])
        rows["damaged"] = f"{len(note['left_out'])} images left out: {names}"
    missing = [name for name in ("train", "validation") if name not in rows]
    rows |= dict.fromkeys(missing, "missing: nothing can be trained on this set")
    if not missing:
        words = f"--config.data.name=imagenet2012 --config.data.dir={data_dir}"
        rows["train with"] = words
    return "\n".join(f"{name:12s} {text}" for name, text in rows.items())


def _builder(data_dir):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(NAME, data_dir=data_dir, file_format="array_record")
    except Exception as error:  # of many kinds, for files that TFDS cannot read
        if tfrecords.find_tfrecords(data_dir, NAME):
            hint = f"--source {data_dir} with another --dir converts them"
            problem = f"has {NAME} in TFRECORD files"
            raise refused(data_dir, problem, hint=hint) from error
        problem = f"has a damaged {NAME}, or one in another format"
        allowed = "array_record, or another folder"
        raise refused(data_dir, problem, allowed) from error


def refused(data_dir, problem, allowed="", hint=""):
    """The InputError about --dir."""
    clauses = [f"--dir {data_dir} {problem}", allowed, hint]
    return InputError("; ".join(clause for clause in clauses if clause))


def _work(target):
    """The folder of a builder's unfinished set."""
    folder = pathlib.Path(target.data_path)
    return folder.with_name(f"incomplete.{folder.name}")


def room(data_dir, short_side=0):
    """The Room for images that are unpacked, below the folder `data_dir`."""
    folder = _work(_builder(data_dir)) / UNPACKED
    stored = functools.partial(_stored_bytes, short_side)
    return Room(str(folder), stored)


def write(
    images, data_dir, short_side=0, workers=0, advance=lambda *_, **__: None, files=None
):
    """Write a set below the folder `data_dir`.

    images: {split: [Entry]}, stored as `encode` says
    short_side: pixels, see `encode`
    workers: processes, 0 is this one
    advance: called as advance(images, before=False) with numbers of images as they are
    done, with `before=True` if by an earlier run
    files: number of files of each split; None is as many as TFDS would write
    Returns what `existing` does.
    Raises InputError for too many damaged images, too little space, a folder that
    cannot be written or that holds the unfinished set of other images; RunError where
    writing ends early.
    """
    target = _builder(data_dir)
    work = _work(target)
    plans = {
        split: plan(split, entries, files and files[split])
        for split, entries in images.items()
    }
    contents = {}
    for files in plans.values():
        contents |= files
    make_folder(work)
    with FolderLock("--dir", work.parent):
        _check_settings(work, short_side, _fingerprint(contents))
        reports = _finished(work, contents)
        missing = {name: contents[name] for name in contents if name not in reports}
        _check_space(work, missing, short_side)
        (work / REPORTS).mkdir(exist_ok=True)
        jobs = [(work, name, entries, short_side) for name, entries in missing.items()]
        advance(sum(len(contents[name]) for name in reports), before=True)
        damaged = {}
        total = sum(map(len, contents.values()))
        for name, report in run_jobs(_write_file, jobs, workers):
            reports[name] = report
            for image, reason in report["damaged"]:
                errors = [UnreadableImage(image, reason)]
                record_unreadable(damaged, errors, total, "left out")
            advance(len(contents[name]))
        _finish(target, work, plans, reports, short_side)
    return existing(data_dir)


def plan(split, entries, number=None):
    """The files of a split with their images in order.

    Order and number are TFDS's: 1,024 and 64 files for all of ImageNet, records sorted
    by the MD5 sum of split and name, so that classes are mixed. Both follow from the
    original files also where smaller images are stored: image 17 of such a set is image
    17 of the other.

    number: of files, None is TFDS's
    Returns {name of a file: [Entry]}.
    Raises InputError where two images have one name.
    """
    from tensorflow_datasets.core.utils import shard_utils

    ordered = sorted(entries, key=functools.partial(_digest, split))
    for first, second in itertools.pairwise(ordered):
        if first.name == second.name:
            raise InputError(
                f"{first.name} is in {first.file} and again in {second.file}"
                f"; allowed: an own name for each image of {split}"
            )
    if number is None:
        size = sum(entry.size for entry in entries)
        number = shard_utils.ShardConfig().get_number_shards(size, len(entries))
    ends = [0, *shard_utils.get_shard_boundaries(len(entries), number)]
    return {
        f"{NAME}-{split}.array_record-{i:05d}-of-{number:05d}": ordered[start:end]
        for i, (start, end) in enumerate(itertools.pairwise(ends))
    }


def _digest(split, entry):
    return hashlib.md5((split + entry.name).encode(), usedforsecurity=False).digest()


def make_folder(path):
    """Make a folder. Raises InputError where no file can be made in it."""
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise refused(path, problem, "a folder with room for the data set") from error


def _fingerprint(contents):
    """A checksum of {file: [Entry]}: names, labels and sizes."""
    checksum = hashlib.md5(usedforsecurity=False)
    for name, entries in contents.items():
        rows = [(entry.name, entry.label, entry.size) for entry in entries]
        checksum.update(f"{name} {rows}".encode())
    return checksum.hexdigest()


def _check_settings(work, short_side, fingerprint):
    """An unfinished set must have been begun with the options that are given now."""
    path = work / SETTINGS
    now = {"short_side": short_side, "images": fingerprint}
    begun = json.loads(path.read_text("utf-8")) if path.exists() else now
    if begun["short_side"] != short_side:
        kind = f"with --short_side {begun['short_side']}"
    elif begun != now:
        kind = "of other images"
    else:
        replace_file(path, json.dumps(now))
        return
    raise InputError(
        f"{work} has an unfinished set {kind}"
        "; give the options it was begun with to resume, or remove the folder"
    )


def _check_space(work, missing, short_side):
    entries = itertools.chain.from_iterable(missing.values())
    check_space(work, sum(_stored_bytes(short_side, 1, e.size) for e in entries))


def _stored_bytes(short_side, images, size):
    """What files of records need for `images` images of `size` bytes together."""
    if short_side:
        size = min(size, images * BYTES_PER_PIXEL * 4 / 3 * short_side**2)
    return MARGIN * size


def _finished(work, names):
    """Reports of files in the folder `work` that need not be written, by name.

    A file that had to leave images out counts as missing: they may have been replaced.
    """
    paths = {name: work / REPORTS / f"{name}.json" for name in names}
    reports = {
        name: json.loads(path.read_text("utf-8"))
        for name, path in paths.items()
        if path.exists()
    }
    return {name: report for name, report in reports.items() if not report["damaged"]}


def _write_file(work, name, entries, short_side):
    """Write one file and, last, its report; (name, report).

    A report says how many images a file holds, their bytes, how many are reencoded
    and which are damaged, as pairs of name and reason. RunError where a file cannot be
    read or written.
    """
    stored = {}
    damaged = {}
    reencoded = 0
    for position, data in _in_order_of_place(entries):
        entry = entries[position]
        try:
            image = encode(data, entry.name, short_side)
        except UnreadableImage as error:
            damaged[position] = (error.name, error.reason)
            continue
        reencoded += image is not data
        stored[position] = tfrecords.serialize_example(image, entry.label, entry.name)
    report = {
        "images": len(stored),
        "bytes": sum(map(len, stored.values())),
        "reencoded": reencoded,
        "damaged": _sorted(damaged),
    }
    try:
        write_records(work / name, _sorted(stored))
        replace_file(work / REPORTS / f"{name}.json", json.dumps(report))
    except (OSError, RuntimeError) as error:  # array_record raises the second
        reason = " ".join(str(error).split())
        raise RunError(f"{work} cannot be written ({reason}): {RESUMES}") from error
    return name, report


def _in_order_of_place(entries):
    """(position in `entries`, bytes) of each, ordered by where they lie on the disk."""
    order = sorted(range(len(entries)), key=lambda i: entries[i][2:])
    for path, positions in itertools.groupby(order, key=lambda i: entries[i].file):
        try:
            with open(path, "rb") as file:
                for position in positions:
                    file.seek(entries[position].start)
                    yield position, file.read(entries[position].size)
        except OSError as error:
            raise RunError(
                f"{path} cannot be read ({error.strerror}): {RESUMES}"
            ) from error


def _sorted(by_position):
    return [by_position[position] for position in sorted(by_position)]


def write_records(path, records):
    from array_record.python import array_record_module

    # TFDS's options: groups of one, so that a record is read without its neighbors.
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def encode(data, name, short_side=0):
    """The bytes to store for the encoded image `data`.

    A JPEG file of a color or gray image keeps its bytes. What else is among ImageNet's
    files (a PNG named .JPEG, 22 JPEGs of printing inks) becomes an RGB JPEG, as in
    TFDS's own preparation, so that every decoder of JPEG reads the whole set. Every
    image is decoded, which shows the damaged ones.

    name: of the file, for errors
    short_side: an image whose short side has more pixels (0: none) is resized to that,
    bicubic and antialiased, the long side rounded down as in evaluation, and encoded
    with JPEG quality 92
    Raises UnreadableImage, also for one too long for the JPEG that it has to become.
    """
    pixels = decode(io.BytesIO(data), name)
    height, width = pixels.shape[:2]
    if short_side and min(height, width) > short_side:
        return _jpeg(_shrunk(pixels, short_side), QUALITY)
    with Image.open(io.BytesIO(data)) as header:
        if header.format in ("JPEG", "MPO") and header.mode in ("RGB", "L"):
            return data
    if max(height, width) > LONGEST_JPEG:
        size = f"{width}x{height} pixels, more than a JPEG's {LONGEST_JPEG:,}"
        raise UnreadableImage(name, size)
    return _jpeg(Image.fromarray(pixels), QUALITY_UNRESIZED)


def _shrunk(pixels, short_side):
    height, width = pixels.shape[:2]
    short = min(height, width)
    size = (int(short_side * width / short), int(short_side * height / short))
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def _jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _finish(target, work, plans, reports, short_side):
    """Write TFDS's description beside the files, then give their folder its name."""
    import tensorflow_datasets as tfds

    splits = []
    for split, files in plans.items():
        parts = [reports[name] for name in files]
        lengths = [part["images"] for part in parts]
        size = sum(part["bytes"] for part in parts)
        splits.append(tfds.core.SplitInfo(split, lengths, size))
    target.info.set_splits(tfds.core.splits.SplitDict(splits))
    target.info.write_to_directory(work)
    parts = []
    left_out = []
    for files in plans.values():
        for name in files:
            parts.append(reports[name])
            left_out += [damaged for damaged, _ in reports[name]["damaged"]]
    classes = {split: _count_classes(files, reports) for split, files in plans.items()}
    content = {
        "classes": classes,
        "short_side": short_side,
        "quality": QUALITY if short_side else None,
        "reencoded": sum(part["reencoded"] for part in parts),
        "left_out": left_out,
    }
    tfds.core.MetadataDict(content).save_metadata(work)
    clear(work.rename(target.data_path))


def clear(folder):
    """Remove from a complete set what an unfinished one had beside its files."""
    folder = pathlib.Path(folder)
    for name in (REPORTS, UNPACKED):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / SETTINGS).unlink(missing_ok=True)


def _count_classes(files, reports):
    """Classes of a split, of images that are not damaged."""
    labels = set()
    for name, entries in files.items():
        damaged = {image for image, _ in reports[name]["damaged"]}
        labels |= {entry.label for entry in entries if entry.name not in damaged}
    return len(labels)
