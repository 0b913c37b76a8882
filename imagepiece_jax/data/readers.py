"""How is work done ahead of time by other threads and processes, and how does it end?

The work is numbered; results come back in the order of the numbers, whoever does it.
Grain deals the numbers out and brings the results back; a `Shelf` holds their pixels.
"""

import atexit
import contextlib
import dataclasses
import itertools
import math
import re
import signal
import weakref
from typing import Any

import numpy as np
from absl import flags

from imagepiece_jax.data import children
from imagepiece_jax.data.shelf import Shelf
from imagepiece_jax.errors import RunError

GROUPS_AHEAD = 2  # begun while the device works, beside two that are joined already
WORTH = 16  # tasks (of some tens of images) that pay for the second a process starts in

# What grain says where a process is gone, and why one usually goes.
_GONE = re.compile(r"terminated unexpectedly with exit code (-?\d+)")
_REASONS = {
    -signal.SIGKILL: ", often for lack of memory",
    -signal.SIGBUS: ", often because /dev/shm is full (in a container: --shm-size)",
}

_running = weakref.WeakSet()  # what `read` has returned


def read(work, groups, *, join, largest, workers=0, threads=0):
    """Iterator over join(results) of one group of results after the other.

    `groups` are pairs (times, size): so many groups of `size` results each, then those
    of the next pair. The results are work(number, room) for the numbers 0, 1, ..,
    named tuples whose field `pixels` is an array room(shape) of uint8 that it fills, of
    at most `largest` bytes. `workers` processes with `threads` threads each work ahead,
    with no process `threads` threads of this one, with neither the calling thread when
    it is asked. A process is only started for every 16 numbers. `work` must survive
    pickling, `join` runs in this process. close() ends processes and threads; processes
    also end with this one, however that ends, and leave Ctrl-C and SIGTERM to it.

    What `work` raises is raised here. RunError where a process has died.
    """
    running = _read(work, groups, join, largest, workers, threads)
    _running.add(running)
    return running


@atexit.register
def _close_all():
    """Close the iterators that nobody has closed.

    Later their threads would meet a half-dead interpreter, and shared memory that is
    gone.
    """
    for running in list(_running):
        running.close()


def _read(work, groups, join, largest, workers, threads):
    """The generator that `read` returns."""
    import grain  # only where something is read: others do without it
    from grain.experimental import ThreadPrefetchDatasetIterator

    count = sum(times * size for times, size in groups)
    most = max((size for _, size in groups), default=1)
    tasks = grain.MapDataset.range(count)
    workers, ahead = min(workers, count // WORTH), GROUPS_AHEAD * most
    # What is entered last ends first: nothing may read from what is closed already.
    with contextlib.ExitStack() as stack:
        if workers:
            if not flags.FLAGS.is_parsed():  # grain asks for flags, in a library too
                flags.FLAGS.mark_as_parsed()
            # What the processes share is what limits how far they get ahead.
            share = math.ceil(ahead / workers)
            shelf = Shelf(workers * (share + math.ceil(most / workers)), largest)
            stack.callback(shelf.close)
            inside = grain.ReadOptions(
                num_threads=threads, prefetch_buffer_size=max(threads, 1)
            )
            outside = grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=share
            )
            results = tasks.map(_Shelved(work, shelf)).to_iter_dataset(inside)
            results = results.mp_prefetch(outside, _start)
            join = _FromShelf(shelf, join, workers)
        else:
            options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
            results = tasks.map(_Alone(work)).to_iter_dataset(options)
        results = iter(results)
        stack.callback(results.close)
        joined = _Groups(results, groups, join)
        if workers or threads:
            joined = ThreadPrefetchDatasetIterator(joined, prefetch_buffer_size=1)
            stack.callback(joined.close)
        if workers:
            stack.callback(shelf.stop)  # or they would wait for a free place
        try:
            # `yield from` would close what is joined before the shelf is stopped.
            for result in joined:  # noqa: UP028
                yield result
        except RuntimeError as error:
            gone = _GONE.search(str(error))
            if gone is None:
                raise
            status = int(gone.group(1))
            raise RunError(
                f"a process that reads images has ended with status {status}"
                f"{_REASONS.get(status, '')}; the same command goes on from the last "
                "checkpoint, and config.data.workers may be lower then"
            ) from error


def _new(shape):
    return np.empty(shape, np.uint8)


@dataclasses.dataclass(frozen=True)
class _Alone:
    """`work` for this process, whose pixels are new arrays."""

    work: Any

    def __call__(self, number):
        return self.work(number, _new)


@dataclasses.dataclass(frozen=True)
class _Shelved:
    """`work` whose pixels stay on the shelf: what is sent has their shape instead."""

    work: Any
    shelf: Shelf

    def __call__(self, number):
        def room(shape):
            return self.shelf.put(number)[: math.prod(shape)].reshape(shape)

        result = self.work(number, room)
        return result._replace(pixels=(number, result.pixels.shape))


@dataclasses.dataclass(frozen=True)
class _FromShelf:
    """`join` of results whose pixels are on the shelf."""

    shelf: Shelf
    join: Any
    workers: int

    def __call__(self, results):
        found = []
        for result in results:
            number, shape = result.pixels
            if number >= self.workers - 1:  # each of them has opened the shelf
                self.shelf.hide()
            pixels = self.shelf.look(number)[: math.prod(shape)].reshape(shape)
            found.append(result._replace(pixels=pixels))
        joined = self.join(found)
        for result in results:
            self.shelf.free(result.pixels[0])
        return joined


class _Groups:
    """Iterator over the joined groups of an iterator of results."""

    def __init__(self, results, groups, join):
        self._results, self._join = results, join
        sizes = (itertools.repeat(size, times) for times, size in groups)
        self._sizes = itertools.chain.from_iterable(sizes)

    def __iter__(self):
        return self

    def __next__(self):
        size = next(self._sizes)
        return self._join([next(self._results) for _ in range(size)])

    def get_state(self):
        """Grain's threads ask for it; a restart begins with another number."""


def _start(index, count):
    """First thing in a process that reads."""
    # The run needs its batches while it finishes a step and writes a checkpoint.
    children.leave_to_parent(signal.SIGINT, signal.SIGTERM)
