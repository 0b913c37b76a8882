"""A recovery's images: random crops to train on, and held-out images."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.common import parallel
from imagepiece_jax.data.augment.random_crop import TrainTransform
from imagepiece_jax.data.batches import Batches
from imagepiece_jax.data.near_duplicates import DIGEST_DIGITS, readable_scenes
from imagepiece_jax.data.source import Source, evenly_spaced_indices
from imagepiece_jax.errors import InputError
from imagepiece_jax.recovery.recovery_step import Recipe

MAX_IMAGES = 10_000  # the most images that are read
# Smallest and largest share of an image's area in a random crop.
AREA = (0.4, 1.0)
HELD_OUT = 5  # one image in five is held out
MIN_HELD_OUT = 16  # the fewest held-out images
MAX_HELD_OUT = 500  # the most held-out images
MIN_SCENES = 5  # the fewest held-out scenes, for the interval
THREADS = 2  # threads that read and decode images

log = logging.getLogger("imagepiece_jax.recover")


class Divided(NamedTuple):
    """Training images and held-out images."""

    learned: Source
    held_out: Source
    scenes: np.ndarray  # [held_out] scene per held-out image
    num_scenes: int  # held-out scenes; 0: training has images like them
    digests: str  # of the training images, as in `RecoveredVariant.learned`


def divided(source: Source, batch_size: int, known: str = "") -> Divided:
    """Hold out whole scenes of the readable images, evenly spaced.

    known: digests of images whose scenes are not held out
    """
    few = source.evenly_spaced(MAX_IMAGES)
    if few is not source:
        counts = f"{len(few):,} of the {len(source):,} images"
        log.warning("%s are taken, evenly spaced", counts)
    source, scenes, digests = readable_scenes(few)
    total = len(source)
    needed = MIN_HELD_OUT + batch_size
    if total < needed:
        parts = f"{MIN_HELD_OUT} to hold out, and a batch of {batch_size}"
        raise InputError(f"images has {total}, but {needed} are needed: {parts}")
    count = min(MAX_HELD_OUT, max(MIN_HELD_OUT, total // HELD_OUT))
    starts = range(0, len(known), DIGEST_DIGITS)
    is_known = np.isin(
        digests, [known[start : start + DIGEST_DIGITS] for start in starts]
    )
    chosen = held_out_scenes(scenes[~np.isin(scenes, scenes[is_known])], count)
    is_held_out = np.isin(scenes, chosen)
    num_scenes = len(chosen)
    if num_scenes < MIN_SCENES or (~is_held_out).sum() < batch_size:
        log.warning(
            "most images are alike, so held-out images are like training "
            "images, and figures may be too good"
        )
        # Single images are held out; num_scenes tells the report.
        num_scenes = 0
        scenes = np.arange(total)
        is_held_out = np.isin(scenes, evenly_spaced_indices(total, count))
    held_out = np.flatnonzero(is_held_out)
    held_out = held_out[
        evenly_spaced_indices(len(held_out), min(MAX_HELD_OUT, len(held_out)))
    ]
    learned = source.subset(np.flatnonzero(~is_held_out))
    digests = "".join(np.array(digests)[~is_held_out])
    images = (learned, source.subset(held_out))
    return Divided(*images, scenes[held_out], num_scenes, digests)


def held_out_scenes(scenes: np.ndarray, count: int) -> np.ndarray:
    """Choose scenes with `count` images or more in total, or none, to hold out."""
    _, first, sizes = np.unique(scenes, return_index=True, return_counts=True)
    # Larger scenes stay in training. If they have most images, no scene is chosen.
    is_small = sizes <= count
    if 2 * sizes[is_small].sum() < len(scenes):
        return np.zeros(0, int)
    # A third of the scenes, or MIN_HELD_OUT, is enough for the interval.
    indices = np.sort(first[is_small])
    sizes = np.bincount(scenes)
    fewest = max(MIN_SCENES, min(MIN_HELD_OUT, len(indices) // 3))
    for number in range(min(fewest, len(indices)), len(indices) + 1):
        chosen = scenes[indices[evenly_spaced_indices(len(indices), number)]]
        if sizes[chosen].sum() >= count:
            break
    return chosen


def random_crops(
    source: Source, image_size: int | tuple[int, int], recipe: Recipe, steps: int
) -> Batches:
    """Batches of random crops for `steps` steps."""
    return Batches(
        source=source,
        transform=TrainTransform(
            image_size, "random_resized", AREA, shift=0, flip=True
        ),
        batch_size=recipe.batch_size,
        placement=parallel.placement(),
        seed=recipe.seed,
        steps=range(steps),
    )


def evaluation_batches(
    source: Source, preprocessing: Callable[[np.ndarray], np.ndarray], batch_size: int
) -> list[dict[str, Any]]:
    """All images, in batches.

    A batch has "image", uint8 [devices, m, H, W, 3], "mask" and "index", [devices, m].
    The mask is False for padding and unreadable images; "index" is the image's place in
    the source.
    Raises InputError for an image that does not fit.
    """
    batches = Batches(
        source=source,
        transform=preprocessing,
        batch_size=batch_size,
        placement=parallel.placement(),
    )
    parts = []
    for batch in batches.read(THREADS):
        part = {name: batch[name] for name in ("image", "index")}
        parts.append({**part, "mask": batch["mask"] == 1})
    return parts
