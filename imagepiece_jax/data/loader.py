"""Which image is where in which batch, and how do batches get made in time?

A run's images are numbered by (step, position in the global batch). `Placement` says
which positions this process holds; order, crop and flip of a position are functions of
(seed, step, position) alone. So one device, eight devices, two hosts, any number of
reading threads and a restart at any step give the same arrays.
"""

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import grain
import numpy as np

from imagepiece_jax.data.decode import MOST_IN_A_ROW, UnreadableImage
from imagepiece_jax.errors import InputError

BATCHES_AHEAD = 2  # read while the device works; more costs host memory only

# First word of every random stream, so that no two purposes share one.
_ORDER, _TRANSFORM = 0, 1


@dataclasses.dataclass(frozen=True)
class Placement:
    """This process's share of every global batch.

    The batch is `accumulation` micro-batches one after the other; each is dealt in
    equal runs to all devices of all processes in order.
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
        dealt = np.arange(batch_size).reshape(self.accumulation, devices, -1)
        first = self.process_index * self.local_devices
        return dealt[:, first : first + self.local_devices].swapaxes(0, 1)


WHOLE = Placement()  # one process with one device


def steps_per_epoch(length, batch_size):
    """Whole batches in `length` images; the remainder is left out. InputError at 0."""
    if length < batch_size:
        raise InputError(
            f"config.batch_size is {batch_size}, but the training data has only "
            f"{length} images: allowed is 1..{length}"
        )
    return length // batch_size


@functools.lru_cache(maxsize=2)  # threads ask at every sample, across one epoch's end
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
    workers=0,
):
    """Iterator over this process's part of the batches start_step..stop_step-1.

    Yields dict(image uint8 [L, A, m, S, S, 3], label int32 [L, A, m]) for L local
    devices and A accumulation steps. `batch_size` is global, `transform` is called as
    (image, rng), `workers` threads read ahead (0: the calling thread reads). An image
    that cannot be read is replaced by the next readable one of the epoch's order and
    recorded in `source.unreadable`. close() ends the threads.

    Raises InputError for a batch that cannot be dealt or filled, a seed that is no
    unsigned 64-bit number, images that do not fit the transform, or too many
    unreadable ones.
    """
    if not 0 <= seed < 2**64:
        raise InputError(f"config.seed is {seed}: allowed are 0..2**64-1")
    positions = placement.positions(batch_size)
    epoch_steps = steps_per_epoch(len(source), batch_size)

    def load(number):
        step, slot = divmod(number, positions.size)
        step, position = step + start_step, int(positions.flat[slot])
        epoch, step_in_epoch = divmod(step, epoch_steps)
        order = epoch_order(seed, epoch, len(source))
        place = step_in_epoch * batch_size + position
        candidates = (order[(place + k) % len(order)] for k in range(MOST_IN_A_ROW))
        rng = _stream(seed, _TRANSFORM, step, position)
        return _load_first(source, candidates, lambda image: transform(image, rng))

    return _batches(
        load,
        source,
        steps=stop_step - start_step,
        shape=positions.shape,
        workers=workers,
        consequence="the next readable image of the epoch takes its place",
        fields=("image", "label"),
    )


def eval_batches(source, transform, *, batch_size, placement=WHOLE, workers=0):
    """Iterator over this process's part of one pass over the source, in its order.

    Yields dict(image uint8 [L, m, S, S, 3], label int32, mask float32, index int32
    [L, m]). Every image comes exactly once over all processes, and every process gets
    the same number of batches. The mask is 0 for an image that cannot be read
    (recorded in `source.unreadable`) and for the padding of the last batch, whose
    indices lie beyond the source. `transform` is called as (image).

    Raises InputError as `train_batches` does.
    """
    placement = dataclasses.replace(placement, accumulation=1)
    positions = placement.positions(batch_size)[:, 0]
    blank = np.zeros((transform.image_size, transform.image_size, 3), np.uint8)

    def load(number):
        batch, slot = divmod(number, positions.size)
        index = batch * batch_size + int(positions.flat[slot])
        absent = _Sample(blank, 0, 0.0, index)
        if index >= len(source):
            return absent
        sample = _load_first(source, [index], transform)
        if sample.mask == 0:
            return absent._replace(errors=sample.errors)
        return sample

    return _batches(
        load,
        source,
        steps=math.ceil(len(source) / batch_size),
        shape=positions.shape,
        workers=workers,
        consequence="it is left out of the evaluation",
        fields=("image", "label", "mask", "index"),
    )


class _Sample(NamedTuple):
    image: np.ndarray | None
    label: int
    mask: float
    index: int
    errors: tuple = ()  # UnreadableImage of those tried before


def _load_first(source, candidates, transform):
    """The first readable image among the candidate indices; mask 0 if there is none."""
    errors = []
    for index in candidates:
        try:
            image, label = source.read(int(index))
        except UnreadableImage as error:
            errors.append(error)
            continue
        try:
            return _Sample(transform(image), label, 1.0, int(index), tuple(errors))
        except InputError as error:
            raise InputError(f"{source.name(int(index))}: {error}") from error
    return _Sample(None, 0, 0.0, -1, tuple(errors))


_DTYPES = {
    "image": np.uint8,
    "label": np.int32,
    "mask": np.float32,
    "index": np.int32,
}


def _batches(load, source, *, steps, shape, workers, consequence, fields):
    """Samples load(0), load(1), ... stacked into `steps` batches of `shape`.

    The record of unreadable images is kept here, in the calling thread and in the order
    of the samples, so that it does not depend on how many threads read.
    """
    size = math.prod(shape)
    samples = _read_ahead(load, steps * size, workers, BATCHES_AHEAD * size)
    in_a_row = ()
    try:
        for _ in range(steps):
            rows = list(itertools.islice(samples, size))
            for row in rows:
                if row.errors:
                    in_a_row += row.errors
                    source.unreadable.record(in_a_row, len(source), consequence)
                if row.mask:
                    in_a_row = ()
            yield {field: _stacked(rows, field, shape) for field in fields}
    finally:
        samples.close()


def _stacked(rows, field, shape):
    """A new array each time: JAX on CPU may use a batch's memory as it is."""
    array = np.stack([np.asarray(getattr(row, field), _DTYPES[field]) for row in rows])
    return array.reshape(shape + array.shape[1:])


def _read_ahead(load, count, workers, ahead):
    """load(0) .. load(count - 1) in order, with up to `ahead` of them under way."""
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=ahead)
    dataset = grain.MapDataset.range(count).map(load).to_iter_dataset(options)
    samples = iter(dataset)
    try:
        yield from samples
    finally:
        samples.close()
