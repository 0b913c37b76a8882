"""TFRECORD files by hand, without code of the package, of TFDS or of TensorFlow."""

import struct

import pytest


def varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number, data):
    """A length-delimited field of a protocol buffer."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(**features):
    """A tf.train.Example of bytes and whole numbers."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = field(1, field(1, value))  # bytes_list.value
        else:
            feature = field(3, field(1, varint(value)))  # int64_list.value, packed
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def masked(data):
    crc = pytest.importorskip("tensorboardX.crc32c").crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def record(data):
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def write(folder, splits, per_file=2):
    """imagenet2012 of {split: [(name, label, image)]}; the files, by name."""
    folder = folder / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    paths = {}
    for split, images in splits.items():
        count = -(-len(images) // per_file)
        for number in range(count):
            name = f"imagenet2012-{split}.tfrecord-{number:05d}-of-{count:05d}"
            rows = images[number * per_file : (number + 1) * per_file]
            paths[name] = folder / name
            paths[name].write_bytes(
                b"".join(
                    record(example(file_name=name.encode(), image=image, label=label))
                    for name, label, image in rows
                )
            )
    return paths
