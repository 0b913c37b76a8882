"""Random access to records in many array_record files, with few of them open.

An open file costs a descriptor and 5 to 20 KB, for the places of its records. Opening
one takes as long as ten to fifteen reads or a tenth of decoding an image of ImageNet.
So all of them stay open where the limit of descriptors allows it, which it nearly
always does, and with 100 of 1,024 open reading is still only a tenth slower.
"""

import bisect
import contextlib
import functools
import itertools
import os
import resource

from imagepiece_jax.errors import RunError

WANTED = 4096  # descriptors a process asks for: ImageNet has 1,024 + 64 files
BUFFER = 32768  # bytes, as TFDS has it
# For random order: nothing is read ahead, and of the file's end, where the places of
# its records are, only what 1,251 of them need instead of a megabyte.
OPTIONS = f"readahead_buffer_size:0,max_parallelism:0,footer_prefetch_bytes:{BUFFER}"
SHARE = 0.5  # of the descriptors that are free at first; the rest is for other things


class ArrayRecords:
    """Records by their number over all `files`, pairs of (path, number of records).

    Threads may read at the same time. A copy by pickling opens files of its own.
    """

    def __init__(self, files):
        self._paths = [os.fspath(path) for path, _ in files]
        self._ends = list(itertools.accumulate(count for _, count in files))

    def __len__(self):
        return self._ends[-1]

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
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a system's own limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return min(WANTED, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _reader(path):
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(
        path, OPTIONS, file_reader_buffer_size=BUFFER
    )
    if not reader.ok():
        reader.read([0])  # raises what is wrong; only whole readers are kept
    return reader
