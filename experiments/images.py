"""The images that models are compared on: a split of a data set, or a part of it."""

import functools
import math
from collections.abc import Mapping

import numpy as np

from imagepiece_jax.common import parallel
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.data import loader, transforms
from imagepiece_jax.data.sources import Subset, open_source
from imagepiece_jax.errors import InputError

MAX_KEPT_BYTES = 2**30  # of pixels: smaller sets are read once and kept


class Images:
    """A source of images and how they are read.

    name, resize: as config.data has them; batch_size: at most all, rounded up to whole
    devices; crop: of transforms.EvalTransform, where weights have another than DeiT's;
    split: the source's.
    """

    def __init__(
        self,
        source,
        name,
        image_size,
        *,
        resize,
        batch_size,
        workers,
        crop=None,
        split="val",
    ):
        self.source, self.name, self.resize = source, name, resize
        self.crop, self.split = dict(crop or {}), split
        self.image_size, self.workers = image_size, workers
        devices = len(parallel.local_devices())
        batch_size = min(batch_size, max(len(source), 1))
        self.batch_size = -(-batch_size // devices) * devices

    @classmethod
    def open(
        cls,
        name: str,
        num_classes: int | None,
        image_size: int,
        *,
        spaced: int | None = None,
        limit: int | None = None,
        labels_by_name: Mapping[str, int] | None = None,
        split: str = "val",
        **options,
    ) -> "Images":
        """A split of the data set `name`; InputError for what cannot be read.

        num_classes: None where labels do not matter. Of larger sets the first `limit`
        images, or so many as `spaced`, evenly spaced.
        """
        source = open_source(
            name, split, num_classes=num_classes, labels_by_name=labels_by_name
        ).first(limit)
        if spaced is not None and spaced < len(source):
            if spaced < 1:
                raise InputError(f"--subset is {spaced}; allowed are numbers from 1")
            source = Subset(source, np.linspace(0, len(source) - 1, spaced).round())
        return cls(source, name, image_size, split=split, **options)

    def __len__(self):
        return len(self.source)

    def subset(self, indices) -> "Images":
        """The same with these images alone."""
        return Images(
            Subset(self.source, indices),
            self.name,
            self.image_size,
            resize=self.resize,
            batch_size=self.batch_size,
            workers=self.workers,
            crop=self.crop,
            split=self.split,
        )

    @property
    def setting(self) -> dict:
        """What of it decides a figure."""
        setting = {
            "data": self.name,
            "split": self.split,
            "images": len(self),
            "digest": self.source.digest,
            "image_size": self.image_size,
            "resize": self.resize,
            **self.crop,
        }
        if isinstance(self.source, Subset):
            setting["part"] = _fingerprint(self.source)
        return setting

    def batches(self):
        """Batches as `loader.eval_batches` gives them; small sets are kept."""
        pixels = len(self) * math.prod(sides(self.image_size)) * 3
        return self._kept if pixels <= MAX_KEPT_BYTES else self._read()

    @functools.cached_property
    def _kept(self):
        return list(self._read())

    def _read(self):
        return loader.eval_batches(
            self.source,
            transforms.EvalTransform(self.image_size, self.resize, **self.crop),
            batch_size=self.batch_size,
            placement=parallel.placement(),
            workers=self.workers,
            threads=2 if self.workers else 0,
        )


def _fingerprint(subset):
    """FNV-1a hash, word by word, of a subset's places in the whole set: hex digits."""
    indices = subset.indices
    while isinstance(subset.source, Subset):
        subset = subset.source
        indices = subset.indices[indices]
    power = np.uint64(1099511628211)
    total = np.uint64(14695981039346656037)
    with np.errstate(over="ignore"):
        for index in indices.astype(np.uint64):
            total = (total ^ index) * power
    return f"{int(total):016x}"
