"""Records of TFDS data sets: array_record files and tf.train.Example.

All without TensorFlow and TFDS: importing TFDS takes a fifth of a second and 16 MB in
every process that reads, and deadlocks where two threads import its lazy modules.

An open array_record file costs a descriptor and 5 to 20 KB, for the positions of its
records. Opening one takes as long as ten to fifteen reads or a tenth of decoding an
image of ImageNet. So all of them stay open where the limit of descriptors allows it,
which it nearly always does; with 100 of 1,024 open, reading is only a tenth slower.
"""

import bisect
import contextlib
import functools
import itertools
import json
import os
import resource

from imagepiece_jax.errors import RunError

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
    may hold one more.
    """
    return functools.lru_cache(most_open())(_reader)


def most_open():
    """How many files this process may keep open, once it has raised its soft limit."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    soft, hard = (WANTED if x == infinite else min(WANTED, x) for x in limits)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):  # a system's own limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, limits[1]))
            soft = hard
    return max(1, int(SHARE * (soft - len(os.listdir("/dev/fd")))))


def _reader(path):
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(
        path, OPTIONS, file_reader_buffer_size=BUFFER
    )
    if not reader.ok():
        reader.read([0])  # raises its mistake; only working readers are cached
    return reader


def parse_example(data):
    """Features of a serialized tf.train.Example by name, as protobuf has them.

    features["label"].int64_list.value and features["image"].bytes_list.value are lists.
    Raises ValueError for another message.
    """
    from google.protobuf.message import DecodeError  # only where records are read

    try:
        return example_class().FromString(data).features.feature
    except DecodeError as error:
        raise ValueError("it holds no tf.train.Example") from error


@functools.cache
def example_class():
    """The class of the message, with the numbers of TensorFlow's example.proto."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example", package="example")

    def message(name, *fields, within=file.message_type):
        added = within.add(name=name)
        for number, (field, label, kind) in enumerate(fields, start=1):
            is_message = isinstance(kind, str)
            added.field.add(
                name=field,
                number=number,
                label=label,
                type=kinds.TYPE_MESSAGE if is_message else kind,
                type_name=f".example.{kind}" if is_message else None,
            )
        return added

    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    message("BytesList", ("value", many, kinds.TYPE_BYTES))
    for name, kind in ("FloatList", kinds.TYPE_FLOAT), ("Int64List", kinds.TYPE_INT64):
        message(name, ("value", many, kind)).field[0].options.packed = True
    lists = {"bytes_list": "BytesList", "float_list": "FloatList"}
    lists["int64_list"] = "Int64List"
    message("Feature", *((name, one, kind) for name, kind in lists.items()))
    features = message("Features", ("feature", many, "Features.FeatureEntry"))
    fields = ("key", one, kinds.TYPE_STRING), ("value", one, "Feature")
    entry = message("FeatureEntry", *fields, within=features.nested_type)
    entry.options.map_entry = True  # protobuf's map<string, Feature>
    message("Example", ("features", one, "Features"))
    pool = descriptor_pool.DescriptorPool()  # TFDS may have its own in the default one
    pool.Add(file)
    example = pool.FindMessageTypeByName("example.Example")
    return message_factory.GetMessageClass(example)
