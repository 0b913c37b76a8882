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

from imagepiece_jax.errors import RunError

FILES_WANTED = 4096  # open files a process asks for: ImageNet has 1,024 + 64 files
BUFFER = 32768  # bytes, as TFDS has it
# For random order: nothing is read ahead, and of the file's end, where the positions
# of its records are, only what 1,251 of them need instead of a megabyte.
OPTIONS = f"readahead_buffer_size:0,max_parallelism:0,footer_prefetch_bytes:{BUFFER}"
SHARE_OF_FREE = 0.5  # of the descriptors free at first; the rest is for other uses


class ArrayRecords:
    """Records by their number over all `files`, pairs of (path, number of records).

    Threads may read at the same time. A copy by pickling opens files of its own.
    """

    def __init__(self, files):
        self._paths = [os.fspath(path) for path, _ in files]
        counts = [count for _, count in files]
        self._ends = list(itertools.accumulate(counts))

    def __len__(self):
        return self._ends[-1]

    def inventory(self):
        """Names of the files, the last record of each and sizes, as bytes."""
        rows = []
        for path, end in zip(self._paths, self._ends, strict=True):
            rows.append([os.path.basename(path), end, os.path.getsize(path)])
        return json.dumps(rows).encode()

    def __getitem__(self, index):
        """Bytes of record `index`; RunError where its file cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        file = bisect.bisect_right(self._ends, index)
        position = index
        if file > 0:
            position -= self._ends[file - 1]
        path = self._paths[file]
        try:
            reader = open_readers()(path)
            (record,) = reader.read([position])
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"{path} cannot be read ({reason})") from error
        return record


@functools.cache  # for all sets of records: descriptors are a matter of the process
def open_readers():
    """The function from a path to an open reader, which keeps those used last.

    A reader that it drops is closed once no thread reads with it any more: each thread
    may hold one more.
    """
    return functools.lru_cache(most_open())(open_reader)


def most_open():
    """How many files this process may keep open, once it has raised its soft limit."""
    import resource  # only where such files are read, which is not on Windows

    def at_most_wanted(limit):
        if limit == resource.RLIM_INFINITY:
            return FILES_WANTED
        return min(FILES_WANTED, limit)

    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = at_most_wanted(soft_limit)
    wanted = at_most_wanted(hard_limit)
    if allowed < wanted:
        with contextlib.suppress(OSError, ValueError):  # a system's own limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard_limit))
            allowed = wanted
    free = allowed - len(os.listdir("/dev/fd"))
    return max(1, int(SHARE_OF_FREE * free))


def open_reader(path):
    """An open reader of an array_record file."""
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


# TensorFlow's example.proto and feature.proto as protobuf describes them.
EXAMPLE = """
name: "example" package: "example" syntax: "proto3"
message_type { name: "BytesList"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "FloatList"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Int64List"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type { name: "Feature"
  field { name: "bytes_list" number: 1 type_name: "BytesList" }
  field { name: "float_list" number: 2 type_name: "FloatList" }
  field { name: "int64_list" number: 3 type_name: "Int64List" } }
message_type { name: "Features"
  field { name: "feature" number: 1 label: LABEL_REPEATED type_name: "FeatureEntry" }
  nested_type { name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING }
    field { name: "value" number: 2 type_name: "Feature" } } }
message_type { name: "Example"
  field { name: "features" number: 1 type_name: "Features" } }
"""


@functools.cache
def example_class():
    """The class of the message tf.train.Example."""
    from google.protobuf import descriptor_pb2, message_factory, text_format
    from google.protobuf.descriptor_pool import DescriptorPool

    pool = DescriptorPool()  # TFDS may have its own in the default one
    pool.Add(text_format.Parse(EXAMPLE, descriptor_pb2.FileDescriptorProto()))
    example = pool.FindMessageTypeByName("example.Example")
    return message_factory.GetMessageClass(example)
