"""Batches from a source: shuffled, repeated, transformed, split over devices.

Order, crop and flip of an image depend only on (seed, step, position in the global
batch). Device, host, worker and thread counts do not change batches, nor does a
restart. `Threads` here or processes in `data.worker_pool` read batches ahead.
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

# Images per task of a thread or process, about: handing over single images would cost
# more than decoding them.
PART_IMAGES = 32
BATCHES_AHEAD = 2  # batches read while another is used

# Purposes are part of a random stream's key, so no two purposes share a stream.
_ORDER = 0
_TRANSFORM = 1


class Sample(NamedTuple):
    """An image's entries in a batch, except its pixels."""

    label: int
    index: int  # in the source; padding: at or above the source's length
    mask: float  # 1: an image; 0: padding, an unreadable or unfit image
    damaged: list[UnreadableImage]  # files tried in vain, or the image's misfit


class Part(NamedTuple):
    """Some images of a batch, ordered by position."""

    pixels: Any  # uint8 [images, H, W, 3]
    samples: list[Sample]


@dataclasses.dataclass(eq=False, kw_only=True)
class Batches:
    """Batches of a source, with this process's share of every batch.

    Without a seed, one pass covers all images in order. A batch is dict(image uint8 [L,
    m, H, W, 3], label int32, mask float32, index int32 [L, m]) for L local devices.
    Over all processes every image comes exactly once, and all processes get equally
    many batches. The mask is 0 for padding and for unreadable images, recorded in
    `source.unreadable`.

    With a seed, every epoch is shuffled anew and drops its partial batch. A batch is
    dict(image uint8 [L, A, m, H, W, 3], label int32 [L, A, m]) for A accumulation
    steps. The next readable image in the epoch's order replaces an unreadable image.

    transform: function (image) -> uint8 [H, W, 3], with a seed (image, rng); its
        attribute `shape` is (H, W)
    batch_size: images per batch, over all processes
    steps: batch numbers; None: one pass
    seed: 0..2**63-1, for order, crops and flips
    repeats: copies of an image in a row, with different random crops (repeated
        augmentation, Hoffer et al., 2020, as in DeiT)
    strict: raise InputError for too many unreadable images, and for an image that does
        not fit the transform; else record both in `source.unreadable`, with mask 0
    Raises InputError for a batch that cannot be split or filled.
    """

    source: Source
    transform: Any
    batch_size: int
    placement: Placement = Placement()
    steps: range | None = None
    seed: int | None = None
    # An epoch keeps its step count under repeats. If batches split evenly, a step has
    # the images that DeiT's sampler gives to all devices together.
    repeats: int = 1
    strict: bool = True

    def __post_init__(self):
        if self.seed is None:
            self.fields = ("label", "mask", "index")
            self.consequence = "it is left out of the evaluation"
            placement = dataclasses.replace(self.placement, accumulation=1)
            positions = placement.sample_positions(self.batch_size)[:, 0]
            in_a_pass = math.ceil(len(self.source) / self.batch_size)
        else:
            self.fields = ("label",)
            self.consequence = "the next readable image of the epoch takes its place"
            positions = self.placement.sample_positions(self.batch_size)
            in_a_pass = steps_per_epoch(len(self.source), self.batch_size)
        if self.steps is None:
            self.steps = range(in_a_pass)
        self._epoch_steps = in_a_pass
        self._shape = positions.shape
        self._positions = positions.ravel()
        parts = math.ceil(positions.size / PART_IMAGES)
        # Slots of this process's batch, ordered by position: `repeats` copies of an
        # image are neighbors, so `read_part` decodes it once.
        self._slots = np.array_split(np.argsort(self._positions), parts)

    @property
    def parts(self) -> int:
        """Parts per batch."""
        return len(self._slots)

    @property
    def part_bytes(self) -> int:
        """Pixel bytes of the largest part."""
        return len(self._slots[0]) * math.prod(self.transform.shape) * 3

    def read_part(self, number: int, allocate) -> Part:
        """Read part `number` of all batches; allocate(shape) makes its pixels."""
        step, part = divmod(number, self.parts)
        step = self.steps[step]
        positions = self._positions[self._slots[part]].tolist()
        pixels = allocate((len(positions), *self.transform.shape, 3))
        samples = []
        epoch_index = None
        for target, position in zip(pixels, positions, strict=True):
            before = epoch_index
            epoch_index = self._place(step, position)
            if epoch_index != before:
                image, sample = self._read(*epoch_index)
            else:  # a copy: its damaged files are recorded already
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
        """(epoch, index into the epoch's order)."""
        epoch, step = divmod(step, self._epoch_steps)
        return epoch, (step * self.batch_size + position) // self.repeats

    def _read(self, epoch, number):
        """(pixels, Sample) of the first readable image; (None, ..) without any."""
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
        if pixels is None:
            return 0  # padding is black
        if self.seed is None:
            return self.transform(pixels)
        return self.transform(pixels, _stream(self.seed, _TRANSFORM, step, position))

    def join(self, parts: list[Part]) -> dict[str, np.ndarray]:
        """Join a batch's parts."""
        # New arrays every time, because JAX on CPUs may use their memory directly.
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
        """Allocate this process's batch without values: {name: array}."""
        types = {"label": np.int32, "mask": np.float32, "index": np.int32}
        pixels = (*self._shape, *self.transform.shape, 3)
        batch = {"image": np.empty(pixels, np.uint8)}
        for name in self.fields:
            batch[name] = np.empty(self._shape, types[name])
        return batch

    def read(self, threads: int = 0) -> "Reader":
        """Iterate over batches that threads read ahead (0: on demand), until close."""
        return Reader(self, Threads(self.read_part, threads))


class Reader:
    """Iterator over batches whose parts a pool reads ahead.

    close() ends the pool; so do garbage collection and interpreter exit.

    pool: Threads, or `worker_pool.Processes`
    Raises the errors of `Batches.read_part`, and InputError for too many unreadable
    images.
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
            # Recorded by the consuming thread, in order of position: the record does
            # not depend on the pool.
            self._record(parts)
            batch = self._batches.join(parts)
            self._submit(len(parts))
        except BaseException:
            self.close()
            raise
        return batch

    def _submit(self, count):
        for number in itertools.islice(self._numbers, count):
            self._pending.append(self._pool.submit(number))

    def _record(self, parts):
        batches = self._batches
        for sample in itertools.chain(*[part.samples for part in parts]):
            unreadable = batches.source.unreadable
            if not batches.strict:
                unreadable |= {error.name: error.reason for error in sample.damaged}
            elif sample.damaged:
                self._damaged += sample.damaged
                total = len(batches.source)
                record_unreadable(unreadable, self._damaged, total, batches.consequence)
            if sample.mask:
                self._damaged = []

    def close(self):
        """End threads and processes."""
        self._pending.clear()
        self._close()


def parts_ahead(batches: Batches, tasks_at_a_time: int) -> int:
    """Most parts in memory at once: the current batch and the parts read ahead."""
    return batches.parts + max(BATCHES_AHEAD * batches.parts, tasks_at_a_time, 1)


class Threads:
    """Numbered tasks in threads, or in the calling thread for threads=0."""

    def __init__(self, work, threads):
        self.tasks_at_a_time = threads
        allocate = functools.partial(np.empty, dtype=np.uint8)
        self._work = functools.partial(work, allocate=allocate)
        self._executor = None
        if threads:
            self._executor = concurrent.futures.ThreadPoolExecutor(threads)

    def submit(self, number):
        """Submit a task; return a function that waits for its result."""
        if self._executor:
            return self._executor.submit(self._work, number).result
        return functools.partial(self._work, number)

    def close(self):
        if self._executor:
            self._executor.shutdown(cancel_futures=True)


def steps_per_epoch(length: int, batch_size: int) -> int:
    """Whole batches in `length` images; InputError for no whole batch."""
    if length < batch_size:
        raise InputError(
            f"batch_size is {batch_size}, but the training data has only {length} "
            "images"
        )
    return length // batch_size


@functools.lru_cache(maxsize=2)  # every part asks; two epochs at an epoch's end
def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Random permutation of 0..length-1 for an epoch, read-only int64 [length]."""
    order = _stream(seed, _ORDER, epoch, 0).permutation(length)
    order.flags.writeable = False
    return order


def _stream(seed, purpose, step, position):
    """Random generator for one purpose, step and position."""
    # Philox is counter-based: streams with different keys or counters never meet.
    return np.random.Generator(
        np.random.Philox(key=[seed, purpose], counter=[0, 0, position, step])
    )
