"""Batches of a training, which are the same on any devices, and processes that read.

Each image of a run has a step and a position in the global batch. Order, crop and flip
of an image are functions of (seed, step, position). So batches do not depend on the
number of devices, hosts, worker processes and threads, nor on a restart.
"""

import dataclasses
import functools
import itertools

import numpy as np

from imagepiece_jax.data.batches import BatchSequence, Reader, Request, chunk_slots
from imagepiece_jax.data.decode import MAX_IN_A_ROW
from imagepiece_jax.errors import InputError
from imagepiece_jax.input import worker_pool

# First word of every random stream, so that no two purposes share one.
_ORDER = 0
_TRANSFORM = 1


def steps_per_epoch(length: int, batch_size: int) -> int:
    """The number of whole batches in `length` images; the rest is left out.

    Raises InputError where images do not fill a batch.
    """
    if length < batch_size:
        raise InputError(
            f"batch_size is {batch_size}, but the training data has only {length} "
            "images"
        )
    return length // batch_size


@functools.lru_cache(maxsize=2)  # all chunks ask for it, also over an epoch's end
def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Permutation of 0..length-1 for one epoch, read-only int64 [length]."""
    order = _stream(seed, _ORDER, epoch, 0).permutation(length)
    order.flags.writeable = False
    return order


def _stream(seed, purpose, step, position):
    """Generator for one purpose: Philox is counter-based, so no two streams meet."""
    return np.random.Generator(
        np.random.Philox(key=[seed, purpose], counter=[0, 0, position, step])
    )


@dataclasses.dataclass(eq=False, kw_only=True)
class TrainBatches(BatchSequence):
    """The batches of a training from start_step to stop_step - 1.

    A batch is dict(image uint8 [L, A, m, S, S, 3], label int32 [L, A, m]) for L local
    devices and A accumulation steps. An image that cannot be read is replaced by the
    next readable one of the epoch's order and recorded in `source.unreadable`.

    transform: function (image, rng)
    seed: seed of order, crops and flips, 0..2**64-1
    repeats: how often each image comes in a row, each time with other random crops; an
        epoch has as many steps as without. A step has the images that DeiT's sampler
        gives to all devices together, if batches split evenly
    Raises InputError for a batch that cannot be split or filled.
    Source: repeated augmentation, Hoffer et al., 2020, as in DeiT.
    """

    seed: int
    start_step: int
    stop_step: int

    fields = ("label",)
    consequence = "the next readable image of the epoch takes its place"

    def __post_init__(self):
        self.by_device = self.placement.positions(self.batch_size)
        self.steps = max(0, self.stop_step - self.start_step)
        self._epoch_steps = steps_per_epoch(len(self.source), self.batch_size)

    def requests(self, number):
        """The images of chunk `number`, with the next ones where one is unreadable."""
        step, chunk = divmod(number, self.chunks)
        step += self.start_step
        epoch, step_in_epoch = divmod(step, self._epoch_steps)
        order = epoch_order(self.seed, epoch, len(self.source))
        indices = (step_in_epoch * self.batch_size + self.positions) // self.repeats
        slots = chunk_slots(self.positions, indices)[chunk]
        for index, copies in itertools.groupby(slots, lambda slot: indices[slot]):
            candidates = order[(index + np.arange(MAX_IN_A_ROW)) % len(order)]
            calls = {slot: (self._rng(step, slot),) for slot in copies}
            yield Request(candidates, calls)

    def _rng(self, step, slot):
        return _stream(self.seed, _TRANSFORM, step, int(self.positions[slot]))


def read_ahead(sequence: BatchSequence, workers: int = 0, threads: int = 0) -> Reader:
    """Iterator over batches, which processes read; its close() ends them.

    workers, threads: processes, and threads of each, that read ahead (see
        `worker_pool.prefetch`)
    Raises InputError as `BatchSequence.batches`; RunError where a process has died.
    """
    joined = worker_pool.prefetch(
        sequence.read,
        sequence.join,
        groups=sequence.steps,
        size=sequence.chunks,
        max_bytes=sequence.max_bytes,
        workers=workers,
        threads=threads,
    )
    return Reader(sequence, joined)


def shared_bytes(sequence: BatchSequence, workers: int, threads: int) -> int:
    """Shared memory that `read_ahead` takes."""
    layout = sequence.steps, sequence.chunks, sequence.max_bytes
    return worker_pool.shared_bytes(*layout, workers, threads)
