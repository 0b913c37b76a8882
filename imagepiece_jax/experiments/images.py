"""On which images? A split of a data set, or a part of it, as evaluation reads it."""

import functools

import numpy as np

from imagepiece_jax.common import parallel
from imagepiece_jax.data import loader, transforms
from imagepiece_jax.data.sources import Source, open_source
from imagepiece_jax.errors import InputError

HELD = 2**30  # bytes of pixels up to which images are read once and kept


class Part(Source):
    """Some images of a source, in the order of `indices`."""

    def __init__(self, source, indices):
        super().__init__(source.num_classes, source.class_names)
        self.source, self.indices = source, np.asarray(indices, np.int64)

    def __len__(self):
        return len(self.indices)

    def read(self, index):
        return self.source.read(int(self.indices[index]))

    def name(self, index):
        return self.source.name(int(self.indices[index]))


class Images:
    """The images that models are compared on, and how they are read.

    name, resize: as config.data has them; limit: of larger sets every k-th image, about
    so many; part: indices of the set that count, instead of all.
    """

    def __init__(self, source, name, image_size, *, resize, batch_size, workers):
        self.source, self.name, self.resize = source, name, resize
        self.image_size, self.workers = image_size, workers
        devices = len(parallel.local_devices())
        self.batch_size = -(-batch_size // devices) * devices

    @classmethod
    def open(cls, name, num_classes, image_size, *, limit=None, **options):
        """The val split of the data set `name`; InputError for what cannot be read."""
        source = open_source(name, "val", num_classes=num_classes)
        if limit is not None and limit < len(source):
            if limit < 1:
                raise InputError(f"--subset is {limit}; allowed are numbers from 1")
            source = Part(source, np.linspace(0, len(source) - 1, limit).round())
        return cls(source, name, image_size, **options)

    def __len__(self):
        return len(self.source)

    def part(self, indices):
        """The same with these images alone."""
        return Images(
            Part(self.source, indices),
            self.name,
            self.image_size,
            resize=self.resize,
            batch_size=self.batch_size,
            workers=self.workers,
        )

    @property
    def setting(self):
        """What of it decides a figure."""
        setting = {
            "data": self.name,
            "split": "val",
            "images": len(self),
            "image_size": self.image_size,
            "resize": self.resize,
        }
        if isinstance(self.source, Part):  # which ones, in few digits
            setting["part"] = _fingerprint(self.source)
        return setting

    def batches(self):
        """Batches as `loader.eval_batches` gives them; small sets are kept."""
        pixels = len(self) * self.image_size**2 * 3
        return self._kept if pixels <= HELD else self._read()

    @functools.cached_property
    def _kept(self):
        return list(self._read())

    def _read(self):
        return loader.eval_batches(
            self.source,
            transforms.EvalTransform(self.image_size, resize=self.resize),
            batch_size=self.batch_size,
            placement=loader.Placement(local_devices=len(parallel.local_devices())),
            workers=self.workers,
            threads=2 if self.workers else 0,
        )


def _fingerprint(part):
    """Hex digits of the images that a part, or a part of a part, consists of."""
    indices = part.indices
    while isinstance(part.source, Part):
        part = part.source
        indices = part.indices[indices]
    power = np.uint64(1099511628211)
    total = np.uint64(14695981039346656037)
    with np.errstate(over="ignore"):
        for index in indices.astype(np.uint64):
            total = (total ^ index) * power  # Fowler, Noll and Vo's hash
    return f"{int(total):016x}"
