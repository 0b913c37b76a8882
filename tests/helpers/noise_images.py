"""A set of noise images, and its batches."""

import dataclasses

import numpy as np

from configs import base
from imagepiece_jax.common.placement import device_samples
from imagepiece_jax.data import worker_pool
from imagepiece_jax.data.batches import Batches
from imagepiece_jax.data.source import Source
from imagepiece_jax.training.config import RunConfig


def train_transform(image_size, **changes):
    """The training transform of configs/base.py, with `changes` of its fields."""
    data_config = RunConfig.from_config(base.get_config()).data
    return dataclasses.replace(data_config.train_transform(image_size), **changes)


class Noise(Source):
    """`length` noise images of various sizes; label i belongs to image i.

    reads: indices of read images, in order
    """

    def __init__(self, length, bad=(), size=None):
        super().__init__(length, num_classes=length)
        self.bad = set(bad)
        self.side = size
        self.reads = []

    def __getitem__(self, index):
        self.reads.append(index)
        return super().__getitem__(index)

    def stored_image(self, place):
        name = f"{place}.jpg"
        if place in self.bad:
            return b"torn", place, name
        rng = np.random.default_rng(place)
        sides = (self.side, self.side) if self.side else rng.integers(9, 30, 2)
        return rng.integers(0, 256, (*sides, 3), np.uint8), place, name


def train_batches(
    source, stop=9, size=8, transform=None, workers=0, threads=0, start=0, **options
):
    """Iterator over the batches of `size` images from `start` to `stop` - 1."""
    batches = Batches(
        source=source,
        transform=transform or train_transform(8),
        **dict(batch_size=size, seed=3, steps=range(start, stop)) | options,
    )
    return worker_pool.read_ahead(batches, workers, threads)


def train_list(*args, **options):
    return list(train_batches(*args, **options))


def field_values(batches, field="label"):
    return np.concatenate([batch[field].ravel() for batch in batches]).tolist()


def global_batches(parts):
    """Global batches from the batches of all processes, in order of position."""
    joined_batches = []
    for batches in zip(*parts, strict=True):
        joined_batch = {}
        for field in batches[0]:
            # [devices, micro-batches, samples of a device, ..]
            array = np.concatenate([batch[field] for batch in batches])
            devices, count, samples = array.shape[:3]
            flat = np.empty((count, devices * samples) + array.shape[3:], array.dtype)
            # test_placement checks the samples' places on devices.
            flat[:, device_samples(devices * samples, devices)] = array.swapaxes(0, 1)
            joined_batch[field] = flat.reshape((-1,) + array.shape[3:])
        joined_batches.append(joined_batch)
    return joined_batches


def assert_same(batches, other_batches):
    import chex  # it imports JAX, and worker processes do not

    chex.assert_trees_all_equal(batches, other_batches, strict=True)


def color_ramp(height, width, slope=4):
    """Red is slope * row, green slope * column, blue 7."""
    image = np.full((height, width, 3), 7, np.uint8)
    image[:, :, 0] = slope * np.arange(height)[:, None]
    image[:, :, 1] = slope * np.arange(width)[None, :]
    return image
