"""The images of a recovery: which are held out, and random crops of the others.

Order, crop and flip of an image are functions of (seed, step, position). So batches do
not depend on threads and devices.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from imagepiece_jax.common import parallel
from imagepiece_jax.data.batches import EvalBatches
from imagepiece_jax.data.decode import UnreadableImage, record_unreadable
from imagepiece_jax.data.source import Source, Subset, evenly_spaced
from imagepiece_jax.errors import InputError

HELD_OUT = 5  # one image in five is held out
MIN_HELD_OUT = 16  # the fewest images that are held out
MAX_HELD_OUT = 500  # the most images that are held out
THREADS = 2  # threads that read and decode images
AHEAD = 2  # batches that are read before they are needed

# Second word of every random stream, so that no two purposes share one.
_ORDER = 0
_CROP = 1


def divided(source: Source, batch_size: int) -> tuple[Source, Source]:
    """(images to learn from, images that are held out), the latter evenly spaced.

    Raises InputError for too few images.
    """
    total = len(source)
    needed = MIN_HELD_OUT + batch_size
    if total < needed:
        needs = f"{MIN_HELD_OUT} to hold out, and a batch of {batch_size}"
        raise InputError(f"{total} images are too few; it takes {needs}")
    held = min(MAX_HELD_OUT, max(MIN_HELD_OUT, total // HELD_OUT))
    held_out = evenly_spaced(total, held)
    others = np.setdiff1d(np.arange(total), held_out)
    return Subset(source, others), Subset(source, held_out)


@dataclasses.dataclass(eq=False)
class Crops:
    """Batches of random crops, uint8 [devices, m, H, W, 3], one for each step.

    Every image comes once before any comes again. One that cannot be read any more is
    named, and the next one takes its place.

    transform: function (image, rng) -> uint8 [H, W, 3]
    batch_size: images in a step, over all devices
    """

    source: Source
    transform: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    batch_size: int
    seed: int

    def batches(self, steps: Iterable[int]) -> Iterator[np.ndarray]:
        """The batches of some steps."""
        positions = parallel.placement().positions(self.batch_size)[:, 0]
        pool = concurrent.futures.ThreadPoolExecutor(THREADS)
        ahead = collections.deque()

        def joined():
            crops = np.stack([crop.result() for crop in ahead.popleft()])
            return crops.reshape(*positions.shape, *crops.shape[1:])

        try:
            for step in steps:
                crop = functools.partial(pool.submit, self.crop, step)
                ahead.append([crop(position) for position in positions.ravel()])
                if len(ahead) > AHEAD:
                    yield joined()
            while ahead:
                yield joined()
        finally:
            pool.shutdown(cancel_futures=True)

    def crop(self, step: int, position: int) -> np.ndarray:
        """The crop at a position of a step's batch."""
        image = self._readable(step * self.batch_size + position)
        rng = np.random.default_rng((self.seed, _CROP, step, position))
        return self.transform(image, rng)

    def _readable(self, number):
        """Image `number` of all epochs, or the first readable one after it."""
        unreadable = []
        for following in itertools.count(number):
            epoch, index = divmod(following, len(self.source))
            order = epoch_order(self.seed, epoch, len(self.source))
            try:
                image, _ = self.source.read(int(order[index]))
                return image
            except UnreadableImage as error:
                unreadable.append(error)
            what_follows = "the next readable image takes its place"
            total = len(self.source)
            record_unreadable(self.source.unreadable, unreadable, total, what_follows)


@functools.lru_cache(maxsize=2)  # crops ask for it, also over an epoch's end
def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Permutation of 0..length-1 for one epoch. [length]"""
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(length)


def evaluation_batches(
    source: Source, preprocessing: Callable[[np.ndarray], np.ndarray], batch_size: int
) -> list[dict[str, Any]]:
    """All images in batches of "image", uint8 [devices, m, H, W, 3], and two arrays.

    "mask", [devices, m], is false for the padding of the last batch, and for an image
    that cannot be read any more; "index", [devices, m], is the place of an image in the
    source.
    Raises InputError for an image that does not fit.
    """
    placement = parallel.placement()
    sequence = EvalBatches(
        source, preprocessing, batch_size=batch_size, placement=placement
    )
    batches = []
    for batch in sequence.batches(THREADS):
        part = {name: batch[name] for name in ("image", "index")}
        batches.append({**part, "mask": batch["mask"] == 1})
    return batches
