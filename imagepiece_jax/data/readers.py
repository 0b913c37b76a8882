"""How is work done ahead of time by other threads and processes, and how does it end?

The work is numbered; results come back in the order of the numbers, whoever does it.
Grain deals the numbers out and brings the results back; a `Shelf` holds their pixels.
"""

import atexit
import dataclasses
import functools
import math
import re
import signal
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


def read(work, count, *, group, join, room, workers=0, threads=0):
    """Iterator over join([result 0 .. result group - 1]), and so on up to `count`.

    work(number, room) makes result `number`, a named tuple whose field `pixels` is an
    array room(n) of uint8 [n, ...] that it fills; `room` here is the shape of the
    largest. `workers` processes with `threads` threads each work ahead, with no process
    `threads` threads of this one, with neither the calling thread when it is asked. A
    process is only started for every 16 numbers. `work` must survive pickling, `join`
    runs in this process. close() ends processes and threads; processes also end with
    this one, however that ends, and leave Ctrl-C and SIGTERM to it.

    What `work` raises is raised here. RunError where a process has died.
    """
    import grain  # only where something is read: others do without it
    from grain.experimental import ThreadPrefetchIterDataset

    tasks, shelf = grain.MapDataset.range(count), None
    workers, ahead = min(workers, count // WORTH), GROUPS_AHEAD * group
    if workers:
        if not flags.FLAGS.is_parsed():  # grain asks for flags, in a library too
            flags.FLAGS.mark_as_parsed()
        # What the processes share is what limits how far they get ahead.
        share = math.ceil(ahead / workers)
        shelf = Shelf(workers * (share + math.ceil(group / workers)), room)
        atexit.register(shelf.stop)  # for an iterator that nobody closed
        inside = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=max(threads, 1)
        )
        outside = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=share
        )
        results = tasks.map(_Shelved(work, shelf)).to_iter_dataset(inside)
        results = results.mp_prefetch(outside, _start)
        join = functools.partial(_from_shelf, shelf=shelf, join=join)
    else:
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        make = functools.partial(work, room=functools.partial(_new, shape=room[1:]))
        results = tasks.map(make).to_iter_dataset(options)
    groups = results.batch(group, batch_fn=join)
    if workers or threads:
        groups = ThreadPrefetchIterDataset(groups, prefetch_buffer_size=1)
    return _closing(groups, shelf)


def _new(count, shape):
    return np.empty((count, *shape), np.uint8)


@dataclasses.dataclass(frozen=True)
class _Shelved:
    """`work` whose pixels stay on the shelf: what is sent has their number instead."""

    work: Any
    shelf: Shelf

    def __call__(self, number):
        result = self.work(number, lambda count: self.shelf.put(number)[:count])
        return result._replace(pixels=number)


def _from_shelf(results, shelf, join):
    numbers = [result.pixels for result in results]
    found = [result._replace(pixels=shelf.look(result.pixels)) for result in results]
    joined = join(found)
    for number in numbers:
        shelf.free(number)
    return joined


def _closing(groups, shelf):
    groups = iter(groups)
    try:
        # `yield from` would close the groups before the shelf stops.
        for result in groups:  # noqa: UP028
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
    finally:
        if shelf is not None:
            shelf.stop()
        groups.close()
        if shelf is not None:
            atexit.unregister(shelf.stop)
            shelf.close()


def _start(index, count):
    """First thing in a process that reads."""
    # The run needs its batches while it finishes a step and writes a checkpoint.
    children.leave_to_parent(signal.SIGINT, signal.SIGTERM)
