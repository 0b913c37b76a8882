"""Which image is where in which batch?

A run's images are numbered by (step, position in the global batch). `Placement` says
which positions this process holds; order, crop and flip of a position are functions of
(seed, step, position) alone. So one device, eight devices, two hosts, any number of
reading processes and threads and a restart at any step give the same arrays.
"""

import bisect
import contextlib
import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np

from imagepiece_jax.common.layout import device_samples
from imagepiece_jax.data import bundles, readers
from imagepiece_jax.data.decode import MOST_IN_A_ROW
from imagepiece_jax.errors import InputError

# First word of every random stream, so that no two purposes share one.
_ORDER, _TRANSFORM = 0, 1


@dataclasses.dataclass(frozen=True)
class Placement:
    """This process's share of every global batch.

    The batch is `accumulation` micro-batches one after the other; each is split evenly
    (see `layout.device_samples`) over all devices of all processes in order.
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
        mine = device_samples(micro, devices)[first : first + self.local_devices]
        return mine[:, None] + micro * np.arange(self.accumulation)[:, None]


WHOLE = Placement()  # one process with one device


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


def train_batches(source, transform, *, workers=0, threads=0, **options):
    """Iterator over this process's part of the batches of `training(...)` alone.

    `workers` processes with `threads` threads each read ahead (see `readers.read`).
    close() ends processes and threads. InputError as `training`, and for images that
    do not fit the transform or too many unreadable ones; RunError where a reading
    process has died.
    """
    return _alone(training(source, transform, **options), workers, threads)


def eval_batches(source, transform, *, workers=0, threads=0, **options):
    """Iterator over this process's part of the batches of `evaluation(...)` alone.

    Otherwise as `train_batches`.
    """
    return _alone(evaluation(source, transform, **options), workers, threads)


def _alone(what, workers, threads):
    return _closing(Feed([(what, 0, what.steps)], workers, threads), what)


def _closing(feed, what):
    with contextlib.closing(feed):
        yield from feed.batches(what)


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
    """Batches that are read in one order, from `training` or `evaluation`."""

    bundles: Any  # reads bundle 0, 1, ..
    steps: int
    shape: tuple  # of the samples of a batch: [local devices, ..]
    fields: tuple
    consequence: str  # of an image that cannot be read, for the log

    @property
    def parts(self):
        """In how many bundles a batch is read."""
        return bundles.parts(math.prod(self.shape))

    @property
    def largest(self):
        """Bytes that the pixels of a bundle have at most."""
        read, transform = self.bundles, self.bundles.transform
        rows = bundles.most_rows(read.positions, read.repeats, transform.random)
        return rows * transform.side**2 * 3


def training(
    source,
    transform,
    *,
    batch_size,
    seed,
    start_step,
    stop_step,
    placement=WHOLE,
    repeats=1,
):
    """The `Pass` of this process's part of the batches start_step..stop_step-1.

    A batch is dict(image uint8 [L, A, m, S, S, 3], label int32 [L, A, m]) for L local
    devices and A accumulation steps; with a `CanvasTransform` also extent int32
    [L, A, m, 2]. `batch_size` is global, `transform` is called as (image, rng). An
    image that cannot be read is replaced by the next readable one of the epoch's order
    and recorded in `source.unreadable`.

    With `repeats` (repeated augmentation, Hoffer et al. 2020, as in DeiT) an epoch has
    as many steps as without, but every image of it comes so many times in a row, each
    time with other draws. A step then has just the images that DeiT's sampler deals
    to its devices, however many these are, as long as whole batches are dealt.

    Raises InputError for a batch that cannot be dealt or filled and for a seed that is
    no unsigned 64-bit number.
    """
    if not 0 <= seed < 2**64:
        raise InputError(f"config.seed is {seed}: allowed are 0..2**64-1")
    positions = placement.positions(batch_size)
    steps_per_epoch(len(source), batch_size)
    return Pass(
        _TrainBundles(
            source, transform, positions.ravel(), batch_size, seed, start_step, repeats
        ),
        steps=max(0, stop_step - start_step),
        shape=positions.shape,
        fields=(*transform.fields, "label"),
        consequence="the next readable image of the epoch takes its place",
    )


def evaluation(source, transform, *, batch_size, placement=WHOLE):
    """The `Pass` of this process's part of all images of the source, in its order.

    A batch is dict(image uint8 [L, m, S, S, 3], label int32, mask float32, index int32
    [L, m]). Every image comes exactly once over all processes, and every process gets
    the same number of batches. The mask is 0 for an image that cannot be read
    (recorded in `source.unreadable`) and for the padding of the last batch, whose
    indices lie beyond the source. `transform` is called as (image).

    Raises InputError for a batch that cannot be dealt.
    """
    placement = dataclasses.replace(placement, accumulation=1)
    positions = placement.positions(batch_size)[:, 0]
    return Pass(
        _EvalBundles(source, transform, positions.ravel(), batch_size),
        steps=math.ceil(len(source) / batch_size),
        shape=positions.shape,
        fields=(*transform.fields, "label", "mask", "index"),
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


class Feed:
    """Batches of several passes by one set of readers, one turn after the other.

    `turns` are (Pass, first step, steps) in the order in which they will be asked for:
    some steps of training, an evaluation, the next steps of training. While the last
    batches of a turn are worked on, the first of the next are read: nothing is started
    for it, and no reader has a copy. `workers` and `threads` are those of
    `readers.read`.
    """

    def __init__(self, turns, workers=0, threads=0):
        turns = [turn for turn in turns if turn[2]]
        order = (itertools.repeat(what, steps) for what, _, steps in turns)
        order = itertools.chain.from_iterable(order)

        def join(results):
            what = next(order)
            return what, bundles.join(results, what.shape, what.fields)

        self._joined = readers.read(
            _InTurn.of(turns),
            [(steps, what.parts) for what, _, steps in turns],
            join=join,
            largest=max((what.largest for what, _, _ in turns), default=0),
            workers=workers,
            threads=threads,
        )

    def batches(self, what):
        """Iterator over the batches of a `Pass`, once; those of others come between.

        The record of unreadable images is kept here, in the calling thread and in the
        order of the positions, so that it does not depend on who reads.
        """
        source, in_a_row = what.bundles.source, ()
        for _ in range(what.steps):
            found, (batch, history) = next(self._joined)
            if found is not what:
                raise RuntimeError("a batch was asked for out of turn")
            for errors, mask in history:
                if errors:
                    in_a_row += errors
                    source.unreadable.record(in_a_row, len(source), what.consequence)
                if mask:
                    in_a_row = ()
            yield batch

    def close(self):
        """End processes and threads."""
        self._joined.close()


@dataclasses.dataclass(frozen=True)
class _InTurn:
    """Reads bundle 0, 1, ... of all turns of a `Feed`."""

    reads: tuple  # of each turn: what reads the bundles of its pass
    starts: tuple  # its first number here
    firsts: tuple  # and in its pass

    @classmethod
    def of(cls, turns):
        counts = [what.parts * steps for what, _, steps in turns]
        return cls(
            tuple(what.bundles for what, _, _ in turns),
            tuple(itertools.accumulate([0, *counts[:-1]])),
            tuple(what.parts * first for what, first, _ in turns),
        )

    def __call__(self, number, room):
        turn = bisect.bisect(self.starts, number) - 1
        first = self.firsts[turn] - self.starts[turn]
        return self.reads[turn](first + number, room)
