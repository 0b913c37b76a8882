"""Batches of images, which are the same on any devices, and those of an evaluation.

Each image has a position in the global batch. `Placement` says which positions this
process has. So batches do not depend on the number of devices, hosts, worker processes
and threads. Those of a training are in `input.loader`, and processes that read them.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from imagepiece_jax.common.placement import Placement
from imagepiece_jax.data.decode import UnreadableImage, record_unreadable
from imagepiece_jax.data.prefetch import Prefetch, Threads
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
        for target, image in zip(pixels, images, strict=True):
            target[:] = image
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
            raise InputError(f"{self.source.name(index)}: {error}") from error

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
            indices = (phase + self.positions) // self.repeats
            chunks = chunk_slots(self.positions, indices)
            images = max(images, *map(len, chunks))
        return images * math.prod(self.transform.shape) * 3

    def batches(self, threads: int = 0) -> "Reader":
        """Iterator over the batches, which threads read ahead; its close() ends them.

        threads: 0: the calling thread reads on demand
        """
        pool = Threads(self.read, threads)
        joined = Prefetch(pool, self.join, groups=self.steps, size=self.chunks)
        return Reader(self, joined)


@dataclasses.dataclass(eq=False, kw_only=True)
class EvalBatches(BatchSequence):
    """The batches of an evaluation: all images of the source, in its order.

    A batch is dict(image uint8 [L, m, S, S, 3], label int32, mask float32, index int32
    [L, m]). Every image comes exactly once over all processes, and every process gets
    the same number of batches. The mask is 0 for an image that cannot be read
    (recorded in `source.unreadable`) and for the padding of the last batch, whose
    indices lie beyond the source.

    transform: function (image)
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

    slot: int  # its index in this process's part of the batch
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


def chunk_slots(positions: np.ndarray, indices: np.ndarray) -> list[list[int]]:
    """The slots of each chunk of a batch, in the order of their positions.

    The copies of an image are in one chunk, so that it is read once.

    positions: [slots], positions in the global batch
    indices: [slots], indices in the order of images, which are the same for all copies
        of an image, and rise with the positions
    """
    order = np.argsort(positions)
    indices = indices[order]
    count = math.ceil(len(order) / CHUNK_IMAGES)
    cuts = np.arange(1, count) * len(order) // count
    cuts = np.searchsorted(indices, indices[cuts])  # before the first of some copies
    return [slots.tolist() for slots in np.split(order, cuts)]


class Reader:
    """Iterator over the batches of a sequence, which are read ahead.

    Unreadable images are recorded in the thread that takes batches, in the order of
    positions, so that the record does not depend on workers.

    joined: a Prefetch of what `BatchSequence.join` returns
    """

    def __init__(self, sequence: BatchSequence, joined: Prefetch):
        self._sequence = sequence
        self._errors_in_a_row = []  # since the last readable image
        self._joined = joined

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
        """Record the files that could not be read for a sample."""
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
