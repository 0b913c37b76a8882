"""Batches of training and evaluation, the same on any devices and after any restart.

A run's images are numbered by (step, position in the global batch). `Placement` says
which positions this process holds; order, crop and flip of a position are functions of
(seed, step, position) alone. So one device, eight devices, two hosts, any number of
worker processes and threads and a restart at any step give the same arrays.
"""

import bisect
import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from imagepiece_jax.common.layout import device_samples
from imagepiece_jax.data import worker_pool
from imagepiece_jax.data.decode import MAX_IN_A_ROW
from imagepiece_jax.data.sources import Source
from imagepiece_jax.errors import InputError

CHUNK_IMAGES = 32  # about, in the unit of work of a reading thread or process

# First word of every random stream, so that no two purposes share one.
_ORDER, _TRANSFORM = 0, 1


@dataclasses.dataclass(frozen=True)
class Placement:
    """This process's share of every global batch.

    The batch is `accumulation` micro-batches one after the other; each is split evenly
    (see `common.layout`) over all devices of all processes in order.
    """

    process_index: int = 0
    process_count: int = 1
    local_devices: int = 1
    accumulation: int = 1

    def positions(self, batch_size: int) -> np.ndarray:
        """Positions in the global batch, int64 [local_devices, accumulation, m].

        Raises InputError where the batch cannot be split evenly.
        """
        devices = self.process_count * self.local_devices
        if batch_size < 1 or batch_size % (devices * self.accumulation):
            raise InputError(
                f"config.batch_size is {batch_size}: it must be a positive multiple of "
                f"devices * accumulation steps = {devices} * {self.accumulation}"
            )
        micro = batch_size // self.accumulation
        first = self.process_index * self.local_devices
        mine = device_samples(micro, devices)[first : first + self.local_devices]
        return mine[:, None] + micro * np.arange(self.accumulation)[:, None]


ONE_DEVICE = Placement()


def steps_per_epoch(length: int, batch_size: int) -> int:
    """Whole batches in `length` images; the remainder is left out. InputError at 0."""
    if length < batch_size:
        raise InputError(
            f"config.batch_size is {batch_size}, but the training data has only "
            f"{length} images: allowed is 1..{length}"
        )
    return length // batch_size


@functools.lru_cache(maxsize=2)  # asked at every chunk, across one epoch's end
def epoch_order(seed, epoch, length):
    """Permutation of 0..length-1 for one epoch, read-only int64 [length]."""
    order = _stream(seed, _ORDER, epoch, 0).permutation(length)
    order.flags.writeable = False
    return order


def _stream(seed, purpose, step, position):
    """Generator for one purpose: Philox is counter-based, so no two streams meet."""
    return np.random.Generator(
        np.random.Philox(key=[seed, purpose], counter=[0, 0, position, step])
    )


def train_batches(source, transform, *, workers=0, threads=0, **options) -> Iterator:
    """Iterator over this process's part of the batches of `train_sequence(...)` alone.

    `workers` processes with `threads` threads each read ahead (see `Prefetch`). close()
    ends processes and threads. InputError as `train_sequence`, and for images that do
    not fit the transform or too many unreadable ones; RunError where a worker process
    has died.
    """
    return _alone(train_sequence(source, transform, **options), workers, threads)


def eval_batches(source, transform, *, workers=0, threads=0, **options) -> Iterator:
    """Iterator over this process's part of the batches of `eval_sequence(...)` alone.

    Otherwise as `train_batches`.
    """
    return _alone(eval_sequence(source, transform, **options), workers, threads)


def _alone(sequence, workers, threads):
    loader = DataLoader([(sequence, 0, sequence.steps)], workers, threads)
    return _closing(loader, sequence)


def _closing(loader, sequence):
    with contextlib.closing(loader):
        yield from loader.batches(sequence)


@dataclasses.dataclass(frozen=True, eq=False)
class BatchSequence:
    """Batches in one order, from `train_sequence` or `eval_sequence`."""

    read: Any  # makes chunk 0, 1, ..
    steps: int
    shape: tuple[int, ...]  # of the samples of a batch: [local devices, ..]
    fields: tuple[str, ...]
    consequence: str  # of an image that cannot be read, for the log

    @property
    def chunks(self):
        """Number of chunks that a batch is read in."""
        return num_chunks(math.prod(self.shape))

    @property
    def max_bytes(self):
        """Bytes that the pixels of a chunk have at most."""
        read, transform = self.read, self.read.transform
        rows = max_rows(read.positions, read.repeats, transform.random)
        return rows * math.prod(transform.shape) * 3


def train_sequence(
    source: Source,
    transform,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    placement: Placement = ONE_DEVICE,
    repeats: int = 1,
) -> BatchSequence:
    """This process's part of the batches start_step..stop_step-1: a `BatchSequence`.

    A batch is dict(image uint8 [L, A, m, S, S, 3], label int32 [L, A, m]) for L local
    devices and A accumulation steps; with a `CanvasTransform` also extent int32
    [L, A, m, 2]. `batch_size` is global, `transform` is called as (image, rng). An
    image that cannot be read is replaced by the next readable one of the epoch's order
    and recorded in `source.unreadable`.

    With `repeats` (repeated augmentation, Hoffer et al. 2020, as in DeiT) an epoch has
    as many steps as without, but every image of it comes so many times in a row, each
    time with other draws. A step then has just the images that DeiT's sampler gives
    to its devices, however many these are, as long as batches split evenly.

    Raises InputError for a batch that cannot be split or filled and for a seed that is
    no unsigned 64-bit number.
    """
    if not 0 <= seed < 2**64:
        raise InputError(f"config.seed is {seed}: allowed are 0..2**64-1")
    positions = placement.positions(batch_size)
    steps_per_epoch(len(source), batch_size)
    return BatchSequence(
        _ReadTraining(
            source, transform, positions.ravel(), batch_size, seed, start_step, repeats
        ),
        steps=max(0, stop_step - start_step),
        shape=positions.shape,
        fields=(*transform.fields, "label"),
        consequence="the next readable image of the epoch takes its place",
    )


def eval_sequence(
    source: Source,
    transform,
    *,
    batch_size: int,
    placement: Placement = ONE_DEVICE,
) -> BatchSequence:
    """This process's part of all images of the source, in its order: a `BatchSequence`.

    A batch is dict(image uint8 [L, m, S, S, 3], label int32, mask float32, index int32
    [L, m]). Every image comes exactly once over all processes, and every process gets
    the same number of batches. The mask is 0 for an image that cannot be read
    (recorded in `source.unreadable`) and for the padding of the last batch, whose
    indices lie beyond the source. `transform` is called as (image).

    Raises InputError for a batch that cannot be split.
    """
    placement = dataclasses.replace(placement, accumulation=1)
    positions = placement.positions(batch_size)[:, 0]
    return BatchSequence(
        _ReadEvaluation(source, transform, positions.ravel(), batch_size),
        steps=math.ceil(len(source) / batch_size),
        shape=positions.shape,
        fields=(*transform.fields, "label", "mask", "index"),
        consequence="it is left out of the evaluation",
    )


@dataclasses.dataclass(frozen=True)
class _ReadTraining:
    """Makes chunk 0, 1, ... of a training run; see `train_sequence`."""

    source: Any
    transform: Any
    positions: np.ndarray  # [slots] in the global batch
    batch_size: int
    seed: int
    start_step: int
    repeats: int

    def __call__(self, number, allocate):
        step, chunk = divmod(number, num_chunks(len(self.positions)))
        step += self.start_step
        epoch_steps = steps_per_epoch(len(self.source), self.batch_size)
        epoch, step_in_epoch = divmod(step, epoch_steps)
        order = epoch_order(self.seed, epoch, len(self.source))
        places = (step_in_epoch * self.batch_size + self.positions) // self.repeats
        builder = worker_pool.ChunkBuilder(self.source, self.transform)
        slots = chunk_slots(self.positions, places, chunk)
        for place, copies in itertools.groupby(slots, key=lambda slot: places[slot]):
            candidates = order[(place + np.arange(MAX_IN_A_ROW)) % len(order)]
            builder.add(candidates, {slot: (self._rng(step, slot),) for slot in copies})
        return builder.build(allocate)

    def _rng(self, step, slot):
        return _stream(self.seed, _TRANSFORM, step, int(self.positions[slot]))


@dataclasses.dataclass(frozen=True)
class _ReadEvaluation:
    """Makes chunk 0, 1, ... of an evaluation; see `eval_sequence`."""

    source: Any
    transform: Any
    positions: np.ndarray
    batch_size: int
    repeats: int = 1

    def __call__(self, number, allocate):
        batch, chunk = divmod(number, num_chunks(len(self.positions)))
        indices = batch * self.batch_size + self.positions
        builder = worker_pool.ChunkBuilder(self.source, self.transform)
        for slot in chunk_slots(self.positions, indices, chunk):
            index = int(indices[slot])
            builder.add([index] if index < len(self.source) else [], {slot: ()}, index)
        return builder.build(allocate)


def num_chunks(samples):
    """Number of chunks that so many samples are read in."""
    return math.ceil(samples / CHUNK_IMAGES)


def chunk_slots(positions, places, chunk):
    """Slots of chunk number `chunk`, in the order of their positions: a list.

    positions [slots] lie in the global batch; places [slots] rise with them, and slots
    of the same place hold copies.
    """
    order = np.argsort(positions)
    places = places[order]
    count = num_chunks(len(order))
    cuts = np.arange(1, count) * len(order) // count
    cuts = np.searchsorted(places, places[cuts])  # to the first of its copies
    return np.split(order, cuts)[chunk].tolist()


def max_rows(positions, repeats, random):
    """Largest number of rows of pixels in a chunk, at any step of an epoch."""
    most = 0
    for phase in range(repeats):
        places = (phase + positions) // repeats
        for chunk in range(num_chunks(len(positions))):
            slots = chunk_slots(positions, places, chunk)
            most = max(most, len(slots if random else set(places[slots].tolist())))
    return most


class DataLoader:
    """Batches of several sequences, read by one set of workers.

    `turns` are (BatchSequence, first step, steps) in the order in which they will be
    asked for: some steps of training, an evaluation, the next steps of training. While
    the last batches of a turn are worked on, the first of the next are read: nothing is
    started for it. `workers` and `threads` are those of `Prefetch`.
    """

    def __init__(self, turns: list, workers: int = 0, threads: int = 0):
        turns = [turn for turn in turns if turn[2]]
        order = (itertools.repeat(sequence, steps) for sequence, _, steps in turns)
        order = itertools.chain.from_iterable(order)

        def join(chunks):
            sequence = next(order)
            return sequence, _join(chunks, sequence.shape, sequence.fields)

        self._joined = worker_pool.Prefetch(
            _ReadTurns.of(turns),
            [(steps, sequence.chunks) for sequence, _, steps in turns],
            join=join,
            max_bytes=max((sequence.max_bytes for sequence, _, _ in turns), default=0),
            workers=workers,
            threads=threads,
        )

    def batches(self, sequence: BatchSequence) -> Iterator[dict[str, np.ndarray]]:
        """Iterator over the batches of a sequence, once; those of others come between.

        Unreadable images are recorded here, in the calling thread and in the order of
        the positions, so that the record does not depend on workers.
        """
        source, in_a_row = sequence.read.source, ()
        for _ in range(sequence.steps):
            found, (batch, history) = next(self._joined)
            if found is not sequence:
                raise RuntimeError("a batch was asked for out of turn")
            for errors, mask in history:
                if errors:
                    in_a_row += errors
                    unreadable, total = source.unreadable, len(source)
                    unreadable.record(in_a_row, total, sequence.consequence)
                if mask:
                    in_a_row = ()
            yield batch

    def close(self):
        """End processes and threads."""
        self._joined.close()


def _join(chunks, shape, fields):
    """(batch, history) of the chunks that make up one batch of `shape`.

    The batch has the arrays named by `fields`, each of `shape` and then that of one
    image; they are new each time, because JAX on CPU may use their memory as it is.
    The history has for every sample, in the order of positions, its errors and mask.
    """
    side = chunks[0].pixels.shape[1]
    kinds = {"image": (np.uint8, (side, side, 3))} | worker_pool.FIELDS
    batch, history = {}, []
    for name in fields:
        dtype, of_one = kinds[name]
        whole = np.empty((math.prod(shape), *of_one), dtype)
        for chunk in chunks:
            if name == "image":
                for slot, row in zip(chunk.slots, chunk.rows, strict=True):
                    whole[slot] = chunk.pixels[row]
            else:
                whole[chunk.slots] = chunk.fields[name]
        batch[name] = whole.reshape(*shape, *of_one)
    for chunk in chunks:
        history += zip(chunk.errors, chunk.fields["mask"], strict=True)
    return batch, history


@dataclasses.dataclass(frozen=True)
class _ReadTurns:
    """Makes chunk 0, 1, ... of all turns of a `DataLoader`."""

    reads: tuple  # of each turn: what makes the chunks of its sequence
    starts: tuple  # its first number here
    firsts: tuple  # and in its sequence

    @classmethod
    def of(cls, turns):
        counts = [sequence.chunks * steps for sequence, _, steps in turns]
        return cls(
            tuple(sequence.read for sequence, _, _ in turns),
            tuple(itertools.accumulate([0, *counts[:-1]])),
            tuple(sequence.chunks * first for sequence, first, _ in turns),
        )

    def __call__(self, number, allocate):
        turn = bisect.bisect(self.starts, number) - 1
        first = self.firsts[turn] - self.starts[turn]
        return self.reads[turn](first + number, allocate)
