"""Which image is where in which batch?

A run's images are numbered by (step, position in the global batch). `Placement` says
which positions this process holds; order, crop and flip of a position are functions of
(seed, step, position) alone. So one device, eight devices, two hosts, any number of
reading processes and threads and a restart at any step give the same arrays.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np

from imagepiece_jax.data import bundles, readers
from imagepiece_jax.data.decode import MOST_IN_A_ROW
from imagepiece_jax.errors import InputError

# First word of every random stream, so that no two purposes share one.
_ORDER, _TRANSFORM = 0, 1


@dataclasses.dataclass(frozen=True)
class Placement:
    """This process's share of every global batch.

    The batch is `accumulation` micro-batches one after the other; each is split evenly
    (see `split`) over all devices of all processes in order.
    """

    process_index: int = 0
    process_count: int = 1
    local_devices: int = 1
    accumulation: int = 1

    def positions(self, batch_size):
        """Positions in the global batch, int64 [local_devices, accumulation, m].

        Raises InputError where the batch cannot be dealt evenly.
        """
        devices = self.process_count * self.local_devices
        if batch_size < 1 or batch_size % (devices * self.accumulation):
            raise InputError(
                f"config.batch_size is {batch_size}: it must be a positive multiple of "
                f"devices * accumulation steps = {devices} * {self.accumulation}"
            )
        micro = batch_size // self.accumulation
        first = self.process_index * self.local_devices
        mine = split(micro, devices)[first : first + self.local_devices]
        return mine[:, None] + micro * np.arange(self.accumulation)[:, None]


WHOLE = Placement()  # one process with one device


def split(samples, devices):
    """Samples of a batch that each device holds, int64 [devices, samples / devices].

    Mixup pairs sample i with n - 1 - i: both are on one device, in mirrored places, so
    that no image travels. Of an odd number of samples a device the middle one's partner
    is the middle one of the mirrored device.
    """
    half, odd = divmod(samples // devices, 2)
    first = np.arange(devices * half).reshape(devices, half)
    middle = devices * half + np.arange(devices * odd).reshape(devices, odd)
    return np.concatenate([first, middle, samples - 1 - first[:, ::-1]], axis=1)


def steps_per_epoch(length, batch_size):
    """Whole batches in `length` images; the remainder is left out. InputError at 0."""
    if length < batch_size:
        raise InputError(
            f"config.batch_size is {batch_size}, but the training data has only "
            f"{length} images: allowed is 1..{length}"
        )
    return length // batch_size


@functools.lru_cache(maxsize=2)  # asked at every bundle, across one epoch's end
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


def train_batches(
    source,
    transform,
    *,
    batch_size,
    seed,
    start_step,
    stop_step,
    placement=WHOLE,
    repeats=1,
    workers=0,
    threads=0,
):
    """Iterator over this process's part of the batches start_step..stop_step-1.

    Yields dict(image uint8 [L, A, m, S, S, 3], label int32 [L, A, m]) for L local
    devices and A accumulation steps; with a `CanvasTransform` also extent int32
    [L, A, m, 2]. `batch_size` is global, `transform` is called as (image, rng).
    `workers` processes with `threads` threads each read ahead (see `readers.read`). An
    image that cannot be read is replaced by the next readable one of the epoch's order
    and recorded in `source.unreadable`. close() ends processes and threads.

    With `repeats` (repeated augmentation, Hoffer et al. 2020, as in DeiT) an epoch has
    as many steps as without, but every image of it comes so many times in a row, each
    time with other draws. A step then has just the images that DeiT's sampler deals
    to its devices, however many these are, as long as whole batches are dealt.

    Raises InputError for a batch that cannot be dealt or filled, a seed that is no
    unsigned 64-bit number, images that do not fit the transform, or too many
    unreadable ones; RunError where a reading process has died.
    """
    if not 0 <= seed < 2**64:
        raise InputError(f"config.seed is {seed}: allowed are 0..2**64-1")
    positions = placement.positions(batch_size)
    steps_per_epoch(len(source), batch_size)
    read = _TrainBundles(
        source, transform, positions.ravel(), batch_size, seed, start_step, repeats
    )
    return _batches(
        read,
        steps=stop_step - start_step,
        shape=positions.shape,
        fields=(*transform.fields, "label"),
        workers=workers,
        threads=threads,
        consequence="the next readable image of the epoch takes its place",
    )


def eval_batches(
    source, transform, *, batch_size, placement=WHOLE, workers=0, threads=0
):
    """Iterator over this process's part of one pass over the source, in its order.

    Yields dict(image uint8 [L, m, S, S, 3], label int32, mask float32, index int32
    [L, m]). Every image comes exactly once over all processes, and every process gets
    the same number of batches. The mask is 0 for an image that cannot be read
    (recorded in `source.unreadable`) and for the padding of the last batch, whose
    indices lie beyond the source. `transform` is called as (image).

    Raises InputError and RunError as `train_batches` does.
    """
    placement = dataclasses.replace(placement, accumulation=1)
    positions = placement.positions(batch_size)[:, 0]
    return _batches(
        _EvalBundles(source, transform, positions.ravel(), batch_size),
        steps=math.ceil(len(source) / batch_size),
        shape=positions.shape,
        fields=(*transform.fields, "label", "mask", "index"),
        workers=workers,
        threads=threads,
        consequence="it is left out of the evaluation",
    )


@dataclasses.dataclass(frozen=True)
class _TrainBundles:
    """Reads bundle 0, 1, ... of a training run; see `train_batches`."""

    source: Any
    transform: Any
    positions: np.ndarray  # [slots] in the global batch
    batch_size: int
    seed: int
    start_step: int
    repeats: int

    def __call__(self, number, room):
        step, part = divmod(number, bundles.parts(len(self.positions)))
        step += self.start_step
        epoch_steps = steps_per_epoch(len(self.source), self.batch_size)
        epoch, step_in_epoch = divmod(step, epoch_steps)
        order = epoch_order(self.seed, epoch, len(self.source))
        places = (step_in_epoch * self.batch_size + self.positions) // self.repeats
        bundle = bundles.Builder(self.source, self.transform)
        slots = bundles.slots(self.positions, places, part)
        for place, copies in itertools.groupby(slots, key=lambda slot: places[slot]):
            candidates = order[(place + np.arange(MOST_IN_A_ROW)) % len(order)]
            bundle.add(candidates, {slot: (self._rng(step, slot),) for slot in copies})
        return bundle.done(room)

    def _rng(self, step, slot):
        return _stream(self.seed, _TRANSFORM, step, int(self.positions[slot]))


@dataclasses.dataclass(frozen=True)
class _EvalBundles:
    """Reads bundle 0, 1, ... of an evaluation; see `eval_batches`."""

    source: Any
    transform: Any
    positions: np.ndarray
    batch_size: int
    repeats: int = 1

    def __call__(self, number, room):
        batch, part = divmod(number, bundles.parts(len(self.positions)))
        indices = batch * self.batch_size + self.positions
        bundle = bundles.Builder(self.source, self.transform)
        for slot in bundles.slots(self.positions, indices, part):
            index = int(indices[slot])
            bundle.add([index] if index < len(self.source) else [], {slot: ()}, index)
        return bundle.done(room)


def _batches(read, *, steps, shape, fields, workers, threads, consequence):
    """Bundles read(0), read(1), ... joined to `steps` batches of `shape`.

    The record of unreadable images is kept here, in the calling thread and in the order
    of the positions, so that it does not depend on who reads.
    """
    parts = bundles.parts(math.prod(shape))
    source, transform = read.source, read.transform
    rows = bundles.most_rows(read.positions, read.repeats, transform.random)
    joined = readers.read(
        read,
        steps * parts,
        group=parts,
        join=functools.partial(bundles.join, shape=shape, fields=fields),
        room=(rows, transform.side, transform.side, 3),
        workers=workers,
        threads=threads,
    )
    in_a_row = ()
    try:
        for batch, history in joined:
            for errors, mask in history:
                if errors:
                    in_a_row += errors
                    source.unreadable.record(in_a_row, len(source), consequence)
                if mask:
                    in_a_row = ()
            yield batch
    finally:
        joined.close()
