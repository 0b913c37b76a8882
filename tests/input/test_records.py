"""array_record files, more than a process may have open, and tf.train.Example."""

import itertools
import os
import pickle
import threading

import pytest

from imagepiece_jax.errors import RunError
from imagepiece_jax.input import records
from imagepiece_jax.input.records import ArrayRecords, parse_example
from tests.command import start
from tests.tfrecords import field

array_record_module = pytest.importorskip("array_record.python.array_record_module")

FILES = 40
EACH = 3

# Reads all records four times over with four threads, in four orders; prints how many
# were right, how many files are open and the soft limit.
READ_ALL = """
import os, random, resource, sys, threading
from imagepiece_jax.input.records import ArrayRecords
before = len(os.listdir("/dev/fd"))
soft, hard, *files = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), int(hard)))
records = ArrayRecords([(path, 3) for path in files])
right = []
def read(seed):
    for index in random.Random(seed).sample(range(len(records)), len(records)):
        right.append(records[index] == b"record %d" % index)
threads = [threading.Thread(target=read, args=[seed]) for seed in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
opened = len(os.listdir("/dev/fd")) - before
print(sum(right), opened, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.fixture
def files(tmp_path):
    """Paths of array_record files; record i over all of them is b"record i"."""
    paths = [str(tmp_path / f"{number:03d}") for number in range(FILES)]
    numbers = itertools.count()
    for path in paths:
        writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
        for _ in range(EACH):
            writer.write(b"record %d" % next(numbers))
        writer.close()
    return paths


@pytest.mark.parametrize("hard", [32, 256])
def test_all_is_read_where_not_all_files_may_be_open(files, hard):
    """The soft limit is raised so that all stay open, where it may be."""
    ended = start("-c", READ_ALL, 32, hard, *files).ok()
    right, open_count, soft = map(int, ended.out.split())
    assert (right, soft) == (4 * FILES * EACH, hard)
    assert 1 < open_count < 20 if hard == 32 else open_count == FILES


def test_no_reader_is_closed_while_a_thread_reads_with_it(files, monkeypatch):
    """With room for one file, a thread that reads keeps its own open beside it."""
    reads = threading.Event()
    go_on = threading.Event()
    make = records.open_reader

    class Slow:
        def __init__(self, path):
            self.reader = make(path)

        def read(self, positions):
            reads.set()
            assert go_on.wait(30)
            return self.reader.read(positions)

    monkeypatch.setattr(records, "most_open", lambda: 1)
    one_is_slow = lambda path: (Slow if path == files[0] else make)(path)  # noqa: E731
    monkeypatch.setattr(records, "open_reader", one_is_slow)
    records.open_readers.cache_clear()
    stored = ArrayRecords([(path, EACH) for path in files])
    found = []
    before = open_files(files)
    slow = threading.Thread(target=lambda: found.append(stored[1]))
    slow.start()
    assert reads.wait(30)
    assert [stored[EACH * k] for k in range(1, 9)] == [
        b"record %d" % (EACH * k) for k in range(1, 9)
    ]
    assert open_files(files) - before == {files[0], files[8]}
    go_on.set()
    slow.join()
    assert found == [b"record 1"]
    assert open_files(files) - before == {files[8]}
    records.open_readers.cache_clear()


def open_files(files):
    """Which of `files` this process has open."""
    links = (f"/dev/fd/{number}" for number in os.listdir("/dev/fd"))
    return {os.readlink(link) for link in links if os.path.lexists(link)} & set(files)


def test_copies_open_their_own_files_and_damage_is_reported(files):
    copy = pickle.loads(pickle.dumps(ArrayRecords([(path, EACH) for path in files])))
    assert len(copy) == FILES * EACH
    for index in (0, 2, 3, 119):
        assert copy[index] == b"record %d" % index
    for index in (-1, FILES * EACH):
        with pytest.raises(IndexError, match="of 120"):
            copy[index]
    os.truncate(files[5], 40)
    with pytest.raises(RunError, match=f"^{files[5]} cannot be read .[^\n]*$"):
        copy[EACH * 5]
    os.unlink(files[6])
    with pytest.raises(RunError, match=f"^{files[6]} cannot be read .*No such file"):
        copy[EACH * 6]


READER = """
import sys
from imagepiece_jax.input.records import parse_example
features = parse_example(bytes.fromhex(sys.argv[1]))
assert list(features["x"].int64_list.value) == [7, 128]
assert not {"tensorflow_datasets", "tensorflow"} & set(sys.modules)
"""


def example(**features):
    from tensorflow_datasets.proto import tf_example_pb2

    message = tf_example_pb2.Example()
    for name, values in features.items():
        feature = message.features.feature[name]
        kinds = {bytes: feature.bytes_list, int: feature.int64_list}
        kinds.get(type(values[0]), feature.float_list).value.extend(values)
    return message.SerializeToString()


def test_what_tfds_writes_is_read():
    values = {
        "image": [os.urandom(70_000)],
        "text": [b"", "größer".encode(), b"\xff"],
        "numbers": [0, 1, 127, 128, 2**63 - 1, -1, -(2**63)],
        "floats": [0.5, -2.0],
    }
    found = parse_example(example(**values))
    assert set(found) == set(values)
    assert list(found["image"].bytes_list.value) == values["image"]
    assert list(found["text"].bytes_list.value) == values["text"]
    assert list(found["numbers"].int64_list.value) == values["numbers"]
    assert list(found["floats"].float_list.value) == values["floats"]


def test_integers_that_are_not_packed_are_read_without_tfds():
    """In threads, importing TFDS may never end."""
    integers = b"\x08\x07\x08\x80\x01"  # field 1, wire type 0: 7, then 128
    entry = field(1, b"x") + field(2, field(3, integers))
    message = field(1, field(1, entry))
    start("-c", READER, message.hex()).ok()


def test_other_messages_are_refused():
    full = example(image=[b"abc"], label=[3])
    for data in (full[:-1], full[:1], full + b"\x80", b"\xff\xff"):
        with pytest.raises(ValueError, match="it holds no tf.train.Example"):
            parse_example(data)
