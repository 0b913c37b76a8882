"""Batches of training and evaluation, which are the same on any devices.

Each image of a run has a step and a position in the global batch. `Placement` says
which positions this process has. Order, crop and flip of an image are functions of
(seed, step, position). So batches do not depend on the number of devices, hosts, worker
processes and threads, nor on a restart.
"""

import abc
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from imagepiece_jax.common.placement import Placement
from imagepiece_jax.data import worker_pool
from imagepiece_jax.data.decode import MAX_IN_A_ROW, UnreadableImage, record_unreadable
from imagepiece_jax.data.source import Source
from imagepiece_jax.errors import InputError

# About so many images are read by one task of a thread or process, as handing over
# single images would cost more than decoding them. Copies of one image are in the same
# chunk, so that it is decoded once.
CHUNK_IMAGES = 32

# Fields of a sample besides its pixels, and their types in a batch.
FIELDS = {
    "label": np.int32,
    "mask": np.float32,  # 1 for an image, 0 for padding
    "index": np.int32,  # index in the source
}

# First word of every random stream, so that no two purposes share one.
_ORDER = 0
_TRANSFORM = 1


def steps_per_epoch(length: int, batch_size: int) -> int:
    """The number of whole batches in `length` images; the rest is left out.

    Raises InputError where images do not fill a batch.
    """
    if length < batch_size:
        raise InputError(
            f"is {batch_size}, but the training data has only {length} images",
            field="batch_size",
            value=batch_size,
            allowed=f"1 to {length}",
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


@dataclasses.dataclass(eq=False)
class BatchSequence(abc.ABC):
    """A sequence of batches, of which this process has its part, read in chunks.

    by_device: [local devices, ..], the positions in the global batch of the images that
        each device gets
    steps: number of batches
    """

    source: Source
    transform: Any
    _: dataclasses.KW_ONLY
    batch_size: int  # images in a batch, over all processes
    placement: Placement = Placement()  # how images are placed on devices
    repeats: int = 1  # how often an image comes in a row

    fields: ClassVar[tuple[str, ...]]  # the FIELDS that a batch has
    # what follows for an image that cannot be read, in words
    consequence: ClassVar[str]

    @abc.abstractmethod
    def requests(self, number) -> Iterator["Request"]:
        """The images of chunk `number` of all batches."""

    def read(self, number, allocate) -> "Chunk":
        """Read chunk `number` of all batches; allocate(shape) makes its pixels."""
        images = []
        samples = []
        for request in self.requests(number):
            image, fields, errors = self._first_readable(request)
            for slot, arguments in request.calls.items():
                images.append(self._transformed(image, fields["index"], arguments))
                samples.append(Sample(slot, fields, errors))
                errors = []  # are recorded for the first copy only
        pixels = allocate((len(images), *self.transform.shape, 3))
        for place, image in zip(pixels, images, strict=True):
            place[:] = image
        return Chunk(pixels, samples)

    def _first_readable(self, request):
        """(the first readable image, its fields, errors of the images before it).

        Where none is readable, the image is None, and the fields are those of padding.
        """
        errors = []
        for candidate in map(int, request.candidates):
            try:
                image, label = self.source.read(candidate)
            except UnreadableImage as error:
                errors.append(error)
                continue
            return image, {"label": label, "mask": 1.0, "index": candidate}, errors
        return None, {"label": 0, "mask": 0.0, "index": request.index}, errors

    def _transformed(self, image, index, arguments):
        """The pixels of an image after the transform; padding is black."""
        if image is None:
            return 0
        try:
            return self.transform(image, *arguments)
        except InputError as error:
            # Asked for only now, as a name may take a read.
            raise error.inside(place=self.source.name(index)) from error

    def join(self, chunks: list["Chunk"]) -> tuple:
        """(a batch, its samples), from the chunks of the batch.

        Arrays are new each time, because JAX on CPUs may use their memory directly.
        """
        batch = self.empty()
        # Views with one axis for devices and micro-batches.
        flat = {}
        for name, array in batch.items():
            flat[name] = array.reshape(-1, *array.shape[self.by_device.ndim :])
        samples = []
        for chunk in chunks:
            samples += chunk.samples
            for sample, pixels in zip(chunk.samples, chunk.pixels, strict=True):
                flat["image"][sample.slot] = pixels
        slots = [sample.slot for sample in samples]
        for name in self.fields:
            flat[name][slots] = [sample.fields[name] for sample in samples]
        return batch, samples

    @functools.cached_property
    def positions(self) -> np.ndarray:
        """The position of each slot of this process's batch: `by_device`, [slots]."""
        return self.by_device.ravel()

    @property
    def chunks(self) -> int:
        """Number of chunks of a batch."""
        return math.ceil(self.by_device.size / CHUNK_IMAGES)

    def empty(self) -> dict[str, np.ndarray]:
        """A new batch of this process without values: {name: array}."""
        shape = self.by_device.shape
        batch = {"image": np.empty((*shape, *self.transform.shape, 3), np.uint8)}
        for name in self.fields:
            batch[name] = np.empty(shape, FIELDS[name])
        return batch

    @property
    def max_bytes(self) -> int:
        """The most bytes of pixels that a chunk has at any step of an epoch."""
        images = 0
        # By the number of copies of a step's first image that the step before had.
        for phase in range(self.repeats):
            places = (phase + self.positions) // self.repeats
            chunks = chunk_slots(self.positions, places)
            images = max(images, *map(len, chunks))
        return images * math.prod(self.transform.shape) * 3

    def shared_bytes(self, workers: int, threads: int) -> int:
        """Shared memory that `batches` takes."""
        layout = self.steps, self.chunks, self.max_bytes
        return worker_pool.shared_bytes(*layout, workers, threads)

    def batches(self, workers: int = 0, threads: int = 0) -> "Reader":
        """Iterator over the batches; its close() ends processes and threads.

        workers, threads: processes, and threads of each, that read ahead (see
            `Prefetch`)
        Raises InputError for images that do not fit the transform or too many that
        cannot be read; RunError where a worker process has died.
        """
        return Reader(self, workers, threads)


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
    Raises InputError for a batch that cannot be split or filled, and for another seed.
    Source: repeated augmentation, Hoffer et al., 2020, as in DeiT.
    """

    seed: int
    start_step: int
    stop_step: int

    fields = ("label",)
    consequence = "the next readable image of the epoch takes its place"

    def __post_init__(self):
        if not 0 <= self.seed < 2**64:
            raise InputError(field="seed", value=self.seed, allowed="0 to 2**64 - 1")
        self.by_device = self.placement.positions(self.batch_size)
        self.steps = max(0, self.stop_step - self.start_step)
        self._epoch_steps = steps_per_epoch(len(self.source), self.batch_size)

    def requests(self, number):
        step, chunk = divmod(number, self.chunks)
        step += self.start_step
        epoch, step_in_epoch = divmod(step, self._epoch_steps)
        order = epoch_order(self.seed, epoch, len(self.source))
        places = (step_in_epoch * self.batch_size + self.positions) // self.repeats
        slots = chunk_slots(self.positions, places)[chunk]
        for place, copies in itertools.groupby(slots, lambda slot: places[slot]):
            candidates = order[(place + np.arange(MAX_IN_A_ROW)) % len(order)]
            calls = {slot: (self._rng(step, slot),) for slot in copies}
            yield Request(candidates, calls)

    def _rng(self, step, slot):
        return _stream(self.seed, _TRANSFORM, step, int(self.positions[slot]))


@dataclasses.dataclass(eq=False, kw_only=True)
class EvalBatches(BatchSequence):
    """The batches of an evaluation: all images of the source, in its order.

    A batch is dict(image uint8 [L, m, S, S, 3], label int32, mask float32, index int32
    [L, m]). Every image comes exactly once over all processes, and every process gets
    the same number of batches. The mask is 0 for an image that cannot be read
    (recorded in `source.unreadable`) and for the padding of the last batch, whose
    indices lie beyond the source.

    transform: function (image)
    Raises InputError for a batch that cannot be split.
    """

    fields = ("label", "mask", "index")
    consequence = "it is left out of the evaluation"

    def __post_init__(self):
        placement = dataclasses.replace(self.placement, accumulation=1)
        self.by_device = placement.positions(self.batch_size)[:, 0]
        self.steps = math.ceil(len(self.source) / self.batch_size)

    def requests(self, number):
        batch, chunk = divmod(number, self.chunks)
        indices = batch * self.batch_size + self.positions
        for slot in chunk_slots(self.positions, indices)[chunk]:
            index = int(indices[slot])
            candidates = [index] if index < len(self.source) else []
            yield Request(candidates, {slot: ()}, index)


class Sample(NamedTuple):
    """An image of a batch, without its pixels."""

    slot: int  # its place in this process's part of the batch
    fields: dict  # {name in FIELDS: value}
    errors: list  # UnreadableImages of files that were tried before it


class Chunk(NamedTuple):
    """Samples in the order of their positions in the global batch."""

    pixels: Any  # uint8 [samples, S, S, 3]
    samples: list[Sample]


class Request(NamedTuple):
    """A request for one image, which is transformed once for each of some slots."""

    candidates: Any  # indices in the source, of which the first readable one is taken
    calls: dict  # {slot: further arguments of the transform}
    index: int = -1  # index of the padding that comes where no image is readable


def chunk_slots(positions: np.ndarray, places: np.ndarray) -> list[list[int]]:
    """The slots of each chunk of a batch, in the order of their positions.

    The copies of an image are in one chunk, so that it is read once.

    positions: [slots], positions in the global batch
    places: [slots], places in the order of images, which are the same for all copies of
        an image, and rise with the positions
    """
    order = np.argsort(positions)
    places = places[order]
    count = math.ceil(len(order) / CHUNK_IMAGES)
    cuts = np.arange(1, count) * len(order) // count
    cuts = np.searchsorted(places, places[cuts])  # before the first of some copies
    return [slots.tolist() for slots in np.split(order, cuts)]


class Reader:
    """Iterator over the batches of a sequence, which are read ahead.

    Unreadable images are recorded in the thread that takes batches, in the order of
    positions, so that the record does not depend on workers.

    workers, threads: as `Prefetch` takes them
    """

    def __init__(self, sequence: BatchSequence, workers: int = 0, threads: int = 0):
        self._sequence = sequence
        self._errors_in_a_row = []  # since the last readable image
        self._joined = worker_pool.Prefetch(
            sequence.read,
            sequence.join,
            groups=sequence.steps,
            size=sequence.chunks,
            max_bytes=sequence.max_bytes,
            workers=workers,
            threads=threads,
        )

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch, samples = next(self._joined)
        try:
            for sample in samples:
                self._record_errors(sample)
        except InputError:
            self.close()
            raise
        return batch

    def _record_errors(self, sample):
        """Record the files that could not be read for a sample.

        Raises InputError where they are too many.
        """
        if sample.errors:
            self._errors_in_a_row += sample.errors
            source = self._sequence.source
            damaged = source.unreadable
            total = len(source)
            consequence = self._sequence.consequence
            record_unreadable(damaged, self._errors_in_a_row, total, consequence)
        is_image = sample.fields["mask"] == 1  # and not padding
        if is_image:
            self._errors_in_a_row = []

    def close(self):
        """End threads and processes."""
        self._joined.close()
