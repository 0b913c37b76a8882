"""The images that models are compared on: a split of a data set, or a part of it."""

import functools
import math
from collections.abc import Mapping

from imagepiece_jax.common import parallel
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.data import loader
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.registry import open_source, short_name
from imagepiece_jax.data.source import Subset

MAX_CACHED_BYTES = 2**30  # of pixels: smaller sets are read once and kept


class Images:
    """A source of images and how they are read.

    name: as config.data has it
    resize: "deit" or "none"; None: that of `crop`
    batch_size: at most all, rounded up to whole devices
    crop: fields of a Preprocessing, where weights have others than DeiT's
    split: the source's
    """

    def __init__(
        self,
        source,
        name,
        image_size,
        *,
        resize=None,
        batch_size,
        workers,
        crop=None,
        split="val",
    ):
        self.source, self.name, self.split = source, name, split
        self.crop = dict(crop or {})
        own = self.crop.pop("resize", "deit")
        self.resize = resize or own
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
        limit: int | None = None,
        labels_by_name: Mapping[str, int] | None = None,
        split: str = "val",
        **options,
    ) -> "Images":
        """A split of the data set `name`; InputError where it cannot be read.

        num_classes: None where labels do not matter
        limit: so many images of a larger set, evenly spaced
        """
        source = open_source(
            name, split, num_classes=num_classes, labels_by_name=labels_by_name
        )
        return cls(source.spread(limit), name, image_size, split=split, **options)

    def __len__(self):
        return len(self.source)

    def subset(self, indices) -> "Images":
        """The same with only these images."""
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
            "resize": self.resize,
            **self.crop,
            **self.source.part,
        }

    def batches(self):
        """Batches as `loader.eval_batches` gives them; small sets are kept."""
        pixels = len(self) * math.prod(sides(self.image_size)) * 3
        return self._cached if pixels <= MAX_CACHED_BYTES else self._read()

    @functools.cached_property
    def _cached(self):
        return list(self._read())

    def _read(self):
        return loader.eval_batches(
            self.source,
            Preprocessing(self.image_size, resize=self.resize, **self.crop),
            batch_size=self.batch_size,
            placement=parallel.placement(),
            workers=self.workers,
            threads=2 if self.workers else 0,
        )
