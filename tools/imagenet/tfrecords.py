"""TFRECORD files as TFDS writes them, read without TensorFlow.

A TFRECORD file is a row of records: length (uint64), its checksum, data, its checksum;
all of it little-endian, checksums CRC-32C, rotated and shifted ("masked").
"""

import glob
import os
import re
import struct

from imagepiece_jax.errors import InputError
from imagepiece_jax.input.records import example_class, parse_example


def serialize_example(image: bytes, label: int, file_name: str) -> bytes:
    """A record of imagenet2012 as TFDS serializes it, its fields in a fixed order."""
    example = example_class()()
    features = example.features.feature
    features["image"].bytes_list.value.append(image)
    features["label"].int64_list.value.append(label)
    features["file_name"].bytes_list.value.append(file_name.encode())
    return example.SerializeToString(deterministic=True)


def find_tfrecords(source, name):
    """The TFRECORD files of the data set `name` below the folder `source`, or in it.

    Returns {split: [file]}, empty where there are no such files.
    Raises InputError where some of a split are missing, and for several versions.
    """
    sets = {}
    for folder in (".", f"{name}/*", "*"):
        pattern = os.path.join(glob.escape(os.fspath(source)), folder)
        for path in sorted(glob.glob(f"{pattern}/{name}-*.tfrecord-*-of-*")):
            parent, file = os.path.split(path)
            match = re.fullmatch(rf"{name}-(\w+)\.tfrecord-(\d+)-of-(\d+)", file)
            if match:
                split = match[1]
                number = int(match[2])
                count = int(match[3])
                files = sets.setdefault((os.path.normpath(parent), count, split), {})
                files[number] = os.path.normpath(path)
        if sets:
            break
    splits = {}
    for (parent, count, split), files in sets.items():
        if split in splits:
            other = os.path.dirname(splits[split][0])
            raise InputError(
                f"{source} has {name} twice, in {other} and {parent}"
                "; allowed: the folder of one"
            )
        missing = set(range(count)) - set(files)
        if missing:
            problem = f"has {len(files)} of the {count} TFRECORD files of {split}, but "
            raise InputError(f"{parent} {problem}not number {min(missing):05d}")
        splits[split] = [files[number] for number in range(count)]
    return splits


def read_examples(path):
    """The records of a TFRECORD file, each a tf.train.Example.

    Yields (byte at which its data starts, data, features by name).
    Raises InputError where the file is torn, a checksum differs or a record is no
    Example; OSError.
    """
    for start, data in read_tfrecords(path):
        try:
            features = parse_example(data)
        except ValueError as error:
            raise _damaged(path, start, str(error)) from error
        yield start, data, features


def read_tfrecords(path):
    """(byte at which it starts, data) of each record of a file; see `read_examples`."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while (begin := file.tell()) < size:
            head = file.read(12)
            if len(head) < 12:
                raise _damaged(path, begin, "the file ends in the middle of it")
            (length,) = struct.unpack("<Q", head[:8])
            (check,) = _uint32(head[8:])
            if _masked_crc(head[:8]) != check:  # a length that is wrong may be any
                raise _damaged(path, begin, "the checksum of its length is wrong")
            if begin + 12 + length + 4 > size:
                raise _damaged(path, begin, "the file ends in the middle of it")
            data = file.read(length)
            if _masked_crc(data) != _uint32(file.read(4))[0]:
                raise _damaged(path, begin, "the checksum of its data is wrong")
            yield begin + 12, data


def _uint32(data):
    return struct.unpack("<I", data)


def _damaged(path, place, reason):
    return InputError(
        f"{path} is damaged in the record at byte {place:,} ({reason})"
        "; fetch or prepare this file again"
    )


def _masked_crc(data):
    """The checksum that a TFRECORD file has of `data`: its CRC-32C, masked."""
    import google_crc32c  # only where such files are converted

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
