"""The images that models are compared on: a split of a data set, or a part of it."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common import parallel
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.data import loader
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.registry import open_source, short_name

MAX_CACHED_BYTES = 2**30  # of pixels: smaller sets are read once and kept


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """A source of images and how they are read."""

    source: Any
    name: str  # as config.data has it
    image_size: int | tuple[int, int]
    most: int  # images at once
    workers: int
    crop: Mapping[str, Any]  # fields of a Preprocessing that are not DeiT's
    split: str = "val"
    alter = valid = None  # as of a `cache.Split`

    @classmethod
    def open(
        cls,
        name: str,
        num_classes: int | None,
        image_size: int | tuple[int, int],
        *,
        limit: int | None = None,
        labels_by_name: Mapping[str, int] | None = None,
        split: str = "val",
        batch_size: int,
        **options,
    ) -> "Images":
        """A split of the data set `name`; InputError where it cannot be read.

        num_classes: None where labels do not matter
        limit: so many images of a larger set, evenly spaced
        batch_size: at most all, rounded up to whole devices
        """
        source = open_source(
            name, split, num_classes=num_classes, labels_by_name=labels_by_name
        ).spread(limit)
        return cls(source, name, image_size, batch_size, split=split, **options)

    def __len__(self):
        return len(self.source)

    @property
    def batch_size(self) -> int:
        devices = len(parallel.local_devices())
        return -(-min(self.most, max(len(self), 1)) // devices) * devices

    @property
    def text(self) -> str:
        """How many images of which set, for a page."""
        spaced = ", evenly spaced" if self.source.part else ""
        return f"{len(self)} images of {short_name(self.name)}{spaced}"

    @property
    def setting(self) -> dict:
        """The facts that decide a figure."""
        return {
            "data": self.name,
            "split": self.split,
            "images": len(self),
            "digest": self.source.digest,
            "image_size": self.image_size,
            "resize": "deit",
            **self.crop,
            **self.source.part,
        }

    def batches(self):
        """Batches as `loader.EvalBatches` gives them; small sets are kept."""
        pixels = len(self) * math.prod(sides(self.image_size)) * 3
        return self._cached if pixels <= MAX_CACHED_BYTES else self._read()

    @functools.cached_property
    def _cached(self):
        return list(self._read())

    def _read(self):
        sequence = loader.EvalBatches(
            self.source,
            Preprocessing(self.image_size, **self.crop),
            batch_size=self.batch_size,
            placement=parallel.placement(),
        )
        return sequence.batches(self.workers, 2 if self.workers else 0)
