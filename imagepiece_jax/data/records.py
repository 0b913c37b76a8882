"""Records of TFDS data sets: array_record files, TFRECORD files, tf.train.Example.

All without TensorFlow and TFDS: importing TFDS takes a fifth of a second and 16 MB in
every process that reads, and deadlocks where two threads import its lazy modules.

An open array_record file costs a descriptor and 5 to 20 KB, for the positions of its
records. Opening one takes as long as ten to fifteen reads or a tenth of decoding an
image of ImageNet. So all of them stay open where the limit of descriptors allows it,
which it nearly always does; with 100 of 1,024 open, reading is only a tenth slower.

A TFRECORD file is a row of records: length (uint64), its checksum, data, its checksum;
all of it little-endian, checksums CRC-32C, rotated and shifted ("masked").
"""

import bisect
import contextlib
import functools
import glob
import itertools
import json
import os
import re
import resource
import struct

from imagepiece_jax.errors import InputError, RunError

WANTED = 4096  # descriptors a process asks for: ImageNet has 1,024 + 64 files
BUFFER = 32768  # bytes, as TFDS has it
# For random order: nothing is read ahead, and of the file's end, where the positions
# of its records are, only what 1,251 of them need instead of a megabyte.
OPTIONS = f"readahead_buffer_size:0,max_parallelism:0,footer_prefetch_bytes:{BUFFER}"
SHARE = 0.5  # of the descriptors that are free at first; the rest is for other uses


class ArrayRecords:
    """Records by their number over all `files`, pairs of (path, number of records).

    Threads may read at the same time. A copy by pickling opens files of its own.
    """

    def __init__(self, files):
        self._paths = [os.fspath(path) for path, _ in files]
        self._ends = list(itertools.accumulate(count for _, count in files))

    def __len__(self):
        return self._ends[-1]

    def inventory(self):
        """Names of the files, the last record of each and sizes, as bytes."""
        files = zip(self._paths, self._ends, strict=True)
        rows = [[os.path.basename(p), end, os.path.getsize(p)] for p, end in files]
        return json.dumps(rows).encode()

    def __getitem__(self, index):
        """Bytes of record `index`; RunError where its file cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        file = bisect.bisect_right(self._ends, index)
        position = index - (self._ends[file - 1] if file else 0)
        path = self._paths[file]
        try:
            (record,) = _open_readers()(path).read([position])
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"{path} cannot be read ({reason})") from error
        return record


@functools.cache  # for all sets of records: descriptors are a matter of the process
def _open_readers():
    """The function from a path to an open reader, which keeps those used last.

    A reader that it drops is closed once no thread reads with it any more: each thread
    may hold one beside those kept.
    """
    return functools.lru_cache(most_open())(_reader)


def most_open():
    """How many files this process may keep open, once it has raised its soft limit."""
    limit = _raise_limit()
    return max(1, int(SHARE * (limit - len(os.listdir("/dev/fd")))))


def _raise_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return WANTED
    most = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft < most:
        with contextlib.suppress(OSError, ValueError):  # a system's own limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return min(WANTED, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _reader(path):
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(
        path, OPTIONS, file_reader_buffer_size=BUFFER
    )
    if not reader.ok():
        reader.read([0])  # raises what is wrong; only whole readers are kept
    return reader


def parse_example(data):
    """Features of a serialized tf.train.Example by name, as protobuf has them.

    features["label"].int64_list.value and features["image"].bytes_list.value are lists.
    Raises ValueError for another message.
    """
    from google.protobuf.message import DecodeError  # only where records are read

    try:
        return _example_class().FromString(data).features.feature
    except DecodeError as error:
        raise ValueError("it holds no tf.train.Example") from error


def serialize_example(image: bytes, label: int, file_name: str) -> bytes:
    """A record of imagenet2012 as TFDS serializes it, its fields in a fixed order."""
    example = _example_class()()
    features = example.features.feature
    features["image"].bytes_list.value.append(image)
    features["label"].int64_list.value.append(label)
    features["file_name"].bytes_list.value.append(file_name.encode())
    return example.SerializeToString(deterministic=True)


@functools.cache
def _example_class():
    """The class of the message, with the numbers of TensorFlow's example.proto."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example", package="example")

    def message(name, *fields, within=file.message_type):
        made = within.add(name=name)
        for number, (field, label, kind) in enumerate(fields, start=1):
            is_message = isinstance(kind, str)
            made.field.add(
                name=field,
                number=number,
                label=label,
                type=kinds.TYPE_MESSAGE if is_message else kind,
                type_name=f".example.{kind}" if is_message else None,
            )
        return made

    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    message("BytesList", ("value", many, kinds.TYPE_BYTES))
    for name, kind in (
        ("FloatList", kinds.TYPE_FLOAT),
        ("Int64List", kinds.TYPE_INT64),
    ):
        message(name, ("value", many, kind)).field[0].options.packed = True
    message(
        "Feature",
        ("bytes_list", one, "BytesList"),
        ("float_list", one, "FloatList"),
        ("int64_list", one, "Int64List"),
    )
    whole = message("Features", ("feature", many, "Features.FeatureEntry"))
    entry = message(
        "FeatureEntry",
        ("key", one, kinds.TYPE_STRING),
        ("value", one, "Feature"),
        within=whole.nested_type,
    )
    entry.options.map_entry = True  # protobuf's map<string, Feature>
    message("Example", ("features", one, "Features"))
    pool = descriptor_pool.DescriptorPool()  # TFDS may have its own in the default one
    pool.Add(file)
    example = pool.FindMessageTypeByName("example.Example")
    return message_factory.GetMessageClass(example)


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
                split, number, count = match[1], int(match[2]), int(match[3])
                files = sets.setdefault((os.path.normpath(parent), count, split), {})
                files[number] = os.path.normpath(path)
        if sets:
            break
    splits = {}
    for (parent, count, split), files in sets.items():
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
            (length,), (check,) = struct.unpack("<Q", head[:8]), _uint32(head[8:])
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
        f"{path} is damaged in the record at byte {place:,} ({reason}): fetch or "
        "prepare this file again"
    )


def _masked_crc(data):
    """The checksum that a TFRECORD file has of `data`: its CRC-32C, masked."""
    import google_crc32c  # only where such files are converted

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
