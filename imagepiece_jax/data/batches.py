"""Batches from a source: shuffled, repeated, transformed, split over devices.

Order, crop and flip of an image depend only on (seed, step, position in the global
batch). Device, host, worker and thread counts do not change batches, nor does a
restart. `ThreadTasks` here or processes in `data.worker_pool` read batches ahead.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.common.placement import Placement
from imagepiece_jax.data.decode import UnreadableImage
from imagepiece_jax.data.source import MAX_UNREADABLE_IN_A_ROW, Source
from imagepiece_jax.errors import InputError

# Images per task of a thread or process, about: handing over single images would cost
# more than decoding them.
CHUNK_IMAGES = 32
BATCHES_AHEAD = 2  # batches read while another is used

# Purposes are part of a random stream's key, so no two purposes share a stream.
_ORDER_PURPOSE = 0
_TRANSFORM_PURPOSE = 1


class Sample(NamedTuple):
    """An image's entries in a batch, except its pixels."""

    label: int
    index: int  # in the source; padding: at or above the source's length
    mask: float  # 1: an image; 0: padding, an unreadable or unfit image
    image_errors: list[UnreadableImage]  # files tried in vain, or the image's misfit


class BatchChunk(NamedTuple):
    """Some images of a batch, ordered by position."""

    pixels: Any  # uint8 [images, height, width, 3]; None on the way between processes
    samples: list[Sample]


AllocatePixels = Callable[[tuple[int, ...]], np.ndarray]  # uint8 of a shape


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

    def __post_init__(self) -> None:
        if self.seed is None:
            self.sample_fields = ("label", "mask", "index")
            self.consequence = "it is left out of the evaluation"
            placement = dataclasses.replace(self.placement, accumulation=1)
            # [devices, images]: without the axis of its only micro-batch, between them.
            positions = placement.sample_positions(self.batch_size)[:, 0]
            self._steps_per_epoch = math.ceil(len(self.source) / self.batch_size)
        else:
            self.sample_fields = ("label",)
            self.consequence = "the next readable image of the epoch takes its place"
            positions = self.placement.sample_positions(self.batch_size)
            num_images = len(self.source)
            self._steps_per_epoch = num_images // self.batch_size
            if num_images < self.batch_size:
                raise InputError(f"batch_size is above {num_images}, the image count")
        self._steps = range(self._steps_per_epoch) if self.steps is None else self.steps
        self._batch_shape = positions.shape
        self._positions = positions.ravel()
        num_chunks = math.ceil(positions.size / CHUNK_IMAGES)
        # Places in this process's batch, ordered by position: `repeats` copies of an
        # image are neighbors, so `read_chunk` decodes it once.
        self._chunk_places = np.array_split(np.argsort(self._positions), num_chunks)
        self.chunks_per_batch = num_chunks
        self.total_chunks = len(self._steps) * num_chunks  # of all batches
        # Bytes of the largest chunk, which is the first: 3 colors a pixel.
        max_images = len(self._chunk_places[0])
        self.chunk_bytes = max_images * math.prod(self.transform.shape) * 3

    def max_buffered_chunks(self, tasks_at_a_time: int) -> int:
        """Most chunks in memory at once: of the current batch, and read ahead."""
        num_ahead = max(BATCHES_AHEAD * self.chunks_per_batch, tasks_at_a_time, 1)
        return self.chunks_per_batch + num_ahead

    def read_chunk(self, chunk_number: int, allocate: AllocatePixels) -> BatchChunk:
        """Read a chunk, counted over all batches; `allocate` makes its pixels."""
        batch_index, chunk_index = divmod(chunk_number, self.chunks_per_batch)
        step = self._steps[batch_index]
        epoch, epoch_step = divmod(step, self._steps_per_epoch)
        batch_start = epoch_step * self.batch_size  # position in the epoch
        positions = self._positions[self._chunk_places[chunk_index]].tolist()
        pixels = allocate((len(positions), *self.transform.shape, 3))
        samples = []
        for order_index, copies in itertools.groupby(
            zip(pixels, positions, strict=True),
            lambda pair: (batch_start + pair[1]) // self.repeats,  # pair[1]: position
        ):
            source_pixels, sample = self._read_first_readable(epoch, order_index)
            for row, position in copies:  # row: a view of `pixels`
                try:
                    row[:] = self._transform_pixels(source_pixels, step, position)
                except InputError as error:
                    image_name = self.source.image_name(sample.index)
                    if self.strict:
                        raise InputError(f"{image_name}: {error}") from error
                    row[:] = 0
                    misfit = UnreadableImage(image_name, f"it does not fit: {error}")
                    sample = sample._replace(mask=0.0, image_errors=[misfit])
                samples.append(sample)
                sample = sample._replace(image_errors=[])  # recorded for the first copy
        return BatchChunk(pixels, samples)

    def _read_first_readable(self, epoch, order_index):
        """(pixels, Sample) of the first readable image; (None, ..) without any."""
        candidate_indices = [order_index]  # in evaluation nothing replaces an image
        if self.seed is not None:
            order = epoch_order(self.seed, epoch, len(self.source))
            following_indices = order_index + np.arange(MAX_UNREADABLE_IN_A_ROW)
            candidate_indices = order[following_indices % len(order)].tolist()
        elif order_index >= len(self.source):
            return None, Sample(0, order_index, 0.0, [])  # padding: label 0, mask 0
        image_errors = []
        for index in candidate_indices:
            image = self.source[index]
            if image.damage is None:
                return image.pixels, Sample(image.label, index, 1.0, image_errors)
            image_errors.append(image.damage)
        return None, Sample(0, candidate_indices[0], 0.0, image_errors)

    def _transform_pixels(self, pixels, step, position):
        """Transform an image, randomly with a seed; 0 for padding, which is black."""
        if pixels is None:
            return 0
        if self.seed is None:
            return self.transform(pixels)
        rng = _random_stream(self.seed, _TRANSFORM_PURPOSE, step, position)
        return self.transform(pixels, rng)

    def join_chunks(self, chunks: list[BatchChunk]) -> dict[str, np.ndarray]:
        """Join a batch's chunks."""
        # New arrays every time, because JAX on CPUs may use their memory directly.
        batch = self.allocate_batch()
        for field, array in batch.items():
            # A view without the axes of devices and micro-batches.
            flat_array = array.reshape(-1, *array.shape[len(self._batch_shape) :])
            for chunk_places, chunk in zip(self._chunk_places, chunks, strict=True):
                flat_array[chunk_places] = (
                    chunk.pixels
                    if field == "image"
                    else [getattr(sample, field) for sample in chunk.samples]
                )
        return batch

    def allocate_batch(self) -> dict[str, np.ndarray]:
        """Allocate this process's batch without values: {name: array}."""
        dtypes = {"label": np.int32, "mask": np.float32, "index": np.int32}
        pixel_shape = (*self._batch_shape, *self.transform.shape, 3)
        batch = {"image": np.empty(pixel_shape, np.uint8)}
        for field in self.sample_fields:
            batch[field] = np.empty(self._batch_shape, dtypes[field])
        return batch

    def read_batches(self, threads: int = 0) -> "BatchReader":
        """Iterate over batches that threads read ahead (0: on demand), until close."""
        return BatchReader(self, ThreadTasks(self.read_chunk, threads))


class BatchReader:
    """Iterator over batches whose chunks a pool reads ahead.

    close() ends the pool; so do garbage collection and interpreter exit.

    pool: ThreadTasks, or `worker_pool.ProcessTasks`; its `submit_task`, `close` and
        `tasks_at_a_time` are used
    """

    def __init__(self, batches: Batches, pool: Any) -> None:
        self._batches = batches
        self._pool = pool
        self._recent_errors = []  # since the last readable image
        self._chunk_numbers = iter(range(batches.total_chunks))
        self._chunk_waits = collections.deque()  # functions that return a read chunk
        # No __del__: at interpreter exit the modules that `close` needs may be gone.
        self._close_pool = weakref.finalize(self, pool.close)
        self._submit_chunks(batches.max_buffered_chunks(pool.tasks_at_a_time))

    def __iter__(self) -> "BatchReader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        try:
            if not self._chunk_waits:
                raise StopIteration
            chunks = []
            for _ in range(self._batches.chunks_per_batch):
                wait_for_chunk = self._chunk_waits.popleft()
                chunks.append(wait_for_chunk())
            # Recorded by the consuming thread, in order of position: the record does
            # not depend on the pool.
            self._record_unreadable_images(chunks)
            batch = self._batches.join_chunks(chunks)
            self._submit_chunks(len(chunks))
        except BaseException:  # also the last batch: its StopIteration ends the pool
            self.close()
            raise
        return batch

    def _submit_chunks(self, num_chunks):
        for chunk_number in itertools.islice(self._chunk_numbers, num_chunks):
            self._chunk_waits.append(self._pool.submit_task(chunk_number))

    def _record_unreadable_images(self, chunks):
        """Record unreadable images; if strict, refuse too many, also in a row."""
        source = self._batches.source
        for sample in itertools.chain(*[chunk.samples for chunk in chunks]):
            if not self._batches.strict:
                for error in sample.image_errors:
                    source.unreadable[error.name] = error.reason
            elif sample.image_errors:
                self._recent_errors += sample.image_errors
                source.record_unreadable(self._recent_errors, self._batches.consequence)
            if sample.mask:  # a readable image ends the row
                self._recent_errors = []

    def close(self) -> None:
        """End threads and processes."""
        self._chunk_waits.clear()
        self._close_pool()


class ThreadTasks:
    """Numbered tasks in threads, or in the calling thread for threads=0."""

    def __init__(self, read_chunk: Callable[..., BatchChunk], threads: int) -> None:
        self.tasks_at_a_time = threads
        self._read_chunk = functools.partial(
            read_chunk, allocate=functools.partial(np.empty, dtype=np.uint8)
        )
        self._executor = None
        if threads:
            self._executor = concurrent.futures.ThreadPoolExecutor(threads)

    def submit_task(self, task_number: int) -> Callable[[], BatchChunk]:
        """Submit a task; return a function that waits for its result."""
        if self._executor:
            return self._executor.submit(self._read_chunk, task_number).result
        return functools.partial(self._read_chunk, task_number)

    def close(self) -> None:
        if self._executor:
            self._executor.shutdown(cancel_futures=True)


@functools.lru_cache(maxsize=2)  # every chunk asks; two epochs at an epoch's end
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Random permutation of 0..num_images-1 for an epoch, read-only."""
    order = _random_stream(seed, _ORDER_PURPOSE, epoch, 0).permutation(num_images)
    order.flags.writeable = False
    return order


def _random_stream(seed, purpose, step, position):
    """Random generator for one purpose, step and position."""
    # Philox is counter-based: streams with different keys or counters never meet.
    return np.random.Generator(
        np.random.Philox(key=[seed, purpose], counter=[0, 0, position, step])
    )
