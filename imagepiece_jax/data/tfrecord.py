"""TFRECORD files of tf.train.Example, TFDS's default format, without TensorFlow.

A file is a row of records: length (uint64), its checksum, data, its checksum; all of it
little-endian, checksums CRC-32C, rotated and shifted ("masked"). Grain has a reader
too, but it verifies no checksum.
"""

import glob
import os
import re
import struct

from imagepiece_jax.data import tf_example
from imagepiece_jax.errors import InputError


def find(source, name):
    """{split: [file]} of the data set `name` below the folder `source`, or in it.

    Empty where there are no such files. InputError where some of a split are missing,
    and for several versions of the set.
    """
    found = {}
    for folder in (".", f"{name}/*", "*"):
        pattern = os.path.join(glob.escape(os.fspath(source)), folder)
        for path in sorted(glob.glob(f"{pattern}/{name}-*.tfrecord-*-of-*")):
            parent, file = os.path.split(path)
            match = re.fullmatch(rf"{name}-(\w+)\.tfrecord-(\d+)-of-(\d+)", file)
            if match:
                split, number, count = match[1], int(match[2]), int(match[3])
                files = found.setdefault((os.path.normpath(parent), count, split), {})
                files[number] = os.path.normpath(path)
        if found:
            break
    splits = {}
    for (parent, count, split), files in found.items():
        if split in splits:
            other = os.path.dirname(splits[split][0])
            raise InputError(
                f"{source} holds {name} twice, in {other} and {parent}: give the "
                "folder of one"
            )
        missing = set(range(count)) - set(files)
        if missing:
            raise InputError(
                f"{parent} holds {len(files)} of the {count} TFRECORD files of {split}:"
                f" number {min(missing):05d} is missing"
            )
        splits[split] = [files[number] for number in range(count)]
    return splits


def examples(path):
    """For each record of a file (byte at which its data starts, data, features).

    Features are those of the tf.train.Example, by name. InputError where the file is
    torn, a checksum differs or a record is no Example; OSError.
    """
    for start, data in records(path):
        try:
            features = tf_example.features(data)
        except ValueError as error:
            raise _damaged(path, start, str(error)) from error
        yield start, data, features


def records(path):
    """(byte at which it starts, data) of each record of a file; see `examples`."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while (begin := file.tell()) < size:
            head = file.read(12)
            if len(head) < 12:
                raise _damaged(path, begin, "the file ends in the middle of it")
            (length,), (check,) = struct.unpack("<Q", head[:8]), _uint32(head[8:])
            if masked(head[:8]) != check:  # a length that is wrong may be any
                raise _damaged(path, begin, "the checksum of its length is wrong")
            if begin + 12 + length + 4 > size:
                raise _damaged(path, begin, "the file ends in the middle of it")
            data = file.read(length)
            if masked(data) != _uint32(file.read(4))[0]:
                raise _damaged(path, begin, "the checksum of its data is wrong")
            yield begin + 12, data


def _uint32(data):
    return struct.unpack("<I", data)


def _damaged(path, place, reason):
    return InputError(
        f"{path} is damaged in the record at byte {place:,} ({reason}): fetch or "
        "prepare this file again"
    )


def masked(data):
    """The checksum that a TFRECORD file has of `data`: its CRC-32C, masked."""
    import google_crc32c  # only where such files are converted

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
