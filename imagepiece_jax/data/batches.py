"""Batches of a source's images: shuffled, repeated, mapped and placed on devices.

Each image of a run has a step and a position in the global batch. Order, crop and flip
of an image are functions of (seed, step, position). So batches do not depend on the
number of devices, hosts, worker processes and threads, nor on a restart. Threads read
them here, processes in `data.worker_pool`.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import math
import weakref
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.common.placement import Placement
from imagepiece_jax.data.decode import MAX_IN_A_ROW, UnreadableImage, record_unreadable
from imagepiece_jax.data.source import Source
from imagepiece_jax.errors import InputError

# About so many images are read by one task of a thread or process, as handing over
# single images would cost more than decoding them.
PART_IMAGES = 32
BATCHES_AHEAD = 2  # batches that are read while one is used

# First word of every random stream, so that no two purposes share one.
_ORDER = 0
_TRANSFORM = 1


class Sample(NamedTuple):
    """What a batch has of an image besides its pixels."""

    label: int
    index: int  # in the source; of padding it lies beyond
    mask: float  # 1: an image; 0: padding, or an image that cannot be read
    damaged: list[UnreadableImage]  # files that were tried for it in vain


class Part(NamedTuple):
    """Some images of a batch, in the order of their positions."""

    pixels: Any  # uint8 [images, H, W, 3]
    samples: list[Sample]


@dataclasses.dataclass(eq=False, kw_only=True)
class Batches:
    """A chain from a source to batches, of which this process has its share.

    Without a seed it is one pass over all images, in their order. A batch is dict(image
    uint8 [L, m, H, W, 3], label int32, mask float32, index int32 [L, m]) for L local
    devices. Every image comes exactly once over all processes, and every process gets
    the same number of batches. The mask is 0 for an image that cannot be read (recorded
    in `source.unreadable`) and for the padding of the last batch.

    With a seed images are shuffled anew in each epoch, and batches that are not full
    are left out. A batch is dict(image uint8 [L, A, m, H, W, 3], label int32 [L, A, m])
    for A accumulation steps. The next readable image of the epoch's order takes the
    place of one that cannot be read (recorded, too).

    transform: function (image) -> uint8 [H, W, 3] with an attribute `shape`, (H, W); or
        with a seed, function (image, rng)
    batch_size: images in a batch, over all processes
    placement: how images are placed on devices
    steps: numbers of the batches; None: those of one pass
    seed: of order, crops and flips, 0..2**63-1
    repeats: how often each image comes in a row, each time with other random crops; an
        epoch has as many steps as without. A step has the images that DeiT's sampler
        gives to all devices together, if batches split evenly
    strict: whether too many images that cannot be read, and any that does not fit the
        transform, raise InputError; else both are recorded, and their mask is 0
    Raises InputError for a batch that cannot be split or filled.
    Source: repeated augmentation, Hoffer et al., 2020, as in DeiT.
    """

    source: Source
    transform: Any
    batch_size: int
    placement: Placement = Placement()
    steps: range | None = None
    seed: int | None = None
    repeats: int = 1
    strict: bool = True

    def __post_init__(self):
        if self.seed is None:
            self.fields = ("label", "mask", "index")
            self.consequence = "it is left out of the evaluation"
            one = dataclasses.replace(self.placement, accumulation=1)
            positions = one.positions(self.batch_size)[:, 0]
            in_a_pass = math.ceil(len(self.source) / self.batch_size)
        else:
            self.fields = ("label",)
            self.consequence = "the next readable image of the epoch takes its place"
            positions = self.placement.positions(self.batch_size)
            in_a_pass = steps_per_epoch(len(self.source), self.batch_size)
        if self.steps is None:
            self.steps = range(in_a_pass)
        self._epoch_steps = in_a_pass
        self._shape = positions.shape
        self._positions = positions.ravel()
        parts = math.ceil(positions.size / PART_IMAGES)
        # Slots of this process's batch, by their positions: copies are neighbors.
        self._slots = np.array_split(np.argsort(self._positions), parts)

    @property
    def parts(self) -> int:
        """Number of parts of a batch."""
        return len(self._slots)

    @property
    def part_bytes(self) -> int:
        """The most bytes of the pixels of a part."""
        return len(self._slots[0]) * math.prod(self.transform.shape) * 3

    def read_part(self, number: int, allocate) -> Part:
        """Read part `number` of all batches; allocate(shape) makes its pixels."""
        step, part = divmod(number, self.parts)
        step = self.steps[step]
        positions = self._positions[self._slots[part]].tolist()
        pixels = allocate((len(positions), *self.transform.shape, 3))
        samples = []
        place = None
        for target, position in zip(pixels, positions, strict=True):
            before = place
            place = self._place(step, position)
            if place != before:
                image, sample = self._read(*place)
            else:  # a copy
                sample = sample._replace(damaged=[])
            try:
                target[:] = self._transformed(image, step, position)
            except InputError as error:
                name = self.source.name(sample.index)
                if self.strict:
                    raise InputError(f"{name}: {error}") from error
                target[:] = 0
                misfit = UnreadableImage(name, f"it does not fit: {error}")
                sample = sample._replace(mask=0.0, damaged=[misfit])
            samples.append(sample)
        return Part(pixels, samples)

    def _place(self, step, position):
        """(epoch, number of the image in the epoch's order)."""
        epoch, step = divmod(step, self._epoch_steps)
        return epoch, (step * self.batch_size + position) // self.repeats

    def _read(self, epoch, number):
        """(pixels, Sample) of the first readable image; (None, ..) where none is."""
        candidates = [number]
        if self.seed is not None:
            order = epoch_order(self.seed, epoch, len(self.source))
            following = (number + np.arange(MAX_IN_A_ROW)) % len(order)
            candidates = order[following].tolist()
        elif number >= len(self.source):
            return None, Sample(0, number, 0.0, [])
        damaged = []
        for index in candidates:
            image = self.source[index]
            if image.readable:
                return image.pixels, Sample(image.label, index, 1.0, damaged)
            damaged.append(image.damage)
        return None, Sample(0, candidates[0], 0.0, damaged)

    def _transformed(self, pixels, step, position):
        """The pixels of an image after the transform; padding is black."""
        if pixels is None:
            return 0
        if self.seed is None:
            return self.transform(pixels)
        return self.transform(pixels, _stream(self.seed, _TRANSFORM, step, position))

    def join(self, parts: list[Part]) -> dict[str, np.ndarray]:
        """The batch of its parts.

        Arrays are new each time, because JAX on CPUs may use their memory directly.
        """
        batch = self.empty()
        axes = len(self._shape)
        for name, array in batch.items():
            flat = array.reshape(-1, *array.shape[axes:])
            for slots, part in zip(self._slots, parts, strict=True):
                if name == "image":
                    flat[slots] = part.pixels
                else:
                    flat[slots] = [getattr(sample, name) for sample in part.samples]
        return batch

    def empty(self) -> dict[str, np.ndarray]:
        """A new batch of this process without values: {name: array}."""
        types = {"label": np.int32, "mask": np.float32, "index": np.int32}
        pixels = (*self._shape, *self.transform.shape, 3)
        batch = {"image": np.empty(pixels, np.uint8)}
        for name in self.fields:
            batch[name] = np.empty(self._shape, types[name])
        return batch

    def read(self, threads: int = 0) -> "Reader":
        """Iterator over the batches, which threads read ahead; its close() ends them.

        threads: 0: the calling thread reads on demand
        """
        return Reader(self, Threads(self.read_part, threads))


class Reader:
    """Iterator over batches, whose parts a pool reads ahead.

    close() ends the pool, and so do garbage collection and the end of the interpreter.
    Images that cannot be read are recorded in the thread that takes batches, in the
    order of positions, so that the record does not depend on the pool.

    pool: Threads, or `worker_pool.Processes`
    Raises what `Batches.read_part` raises; InputError for too many images that cannot
        be read.
    """

    def __init__(self, batches: Batches, pool: Any):
        self._batches = batches
        self._pool = pool
        self._damaged = []  # since the last readable image
        self._numbers = iter(range(len(batches.steps) * batches.parts))
        self._pending = collections.deque()
        self._close = weakref.finalize(self, pool.close)
        self._submit(parts_ahead(batches, pool.tasks_at_a_time))

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        try:
            if not self._pending:
                raise StopIteration
            parts = []
            for _ in range(self._batches.parts):
                result = self._pending.popleft()
                parts.append(result())
            self._record(parts)
            batch = self._batches.join(parts)
            self._submit(len(parts))
        except BaseException:
            self.close()
            raise
        return batch

    def _submit(self, count):
        """Let the pool start the next tasks."""
        for number in itertools.islice(self._numbers, count):
            self._pending.append(self._pool.submit(number))

    def _record(self, parts):
        """Record the files that could not be read."""
        batches = self._batches
        for sample in itertools.chain(*[part.samples for part in parts]):
            known = batches.source.unreadable
            if not batches.strict:
                known |= {error.name: error.reason for error in sample.damaged}
            elif sample.damaged:
                self._damaged += sample.damaged
                total = len(batches.source)
                record_unreadable(known, self._damaged, total, batches.consequence)
            if sample.mask:
                self._damaged = []

    def close(self):
        """End threads and processes."""
        self._pending.clear()
        self._close()


def parts_ahead(batches: Batches, tasks_at_a_time: int) -> int:
    """The most parts in memory at once: of a batch and of those after it."""
    return batches.parts + max(BATCHES_AHEAD * batches.parts, tasks_at_a_time, 1)


class Threads:
    """Does numbered tasks in threads of this process, or without threads when asked."""

    def __init__(self, work, threads):
        self.tasks_at_a_time = threads
        allocate = functools.partial(np.empty, dtype=np.uint8)
        self._work = functools.partial(work, allocate=allocate)
        self._executor = None
        if threads:
            self._executor = concurrent.futures.ThreadPoolExecutor(threads)

    def submit(self, number):
        """Start a task; return a function that waits for its result."""
        if self._executor:
            return self._executor.submit(self._work, number).result
        return functools.partial(self._work, number)

    def close(self):
        if self._executor:
            self._executor.shutdown(cancel_futures=True)


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


@functools.lru_cache(maxsize=2)  # all parts ask for it, also over an epoch's end
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
