"""A recovery's images: random crops to train on, and held-out images."""

import concurrent.futures
import hashlib
import logging
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.common import parallel
from imagepiece_jax.common.device import available_cores
from imagepiece_jax.common.progress import with_progress_bar
from imagepiece_jax.data.batches import Batches
from imagepiece_jax.data.source import Source
from imagepiece_jax.errors import InputError

MAX_IMAGES = 10_000  # the most images that are read
# Smallest and largest share of an image's area in a random crop.
CROP_AREA = (0.4, 1.0)
HELD_OUT_DIVISOR = 5  # one image in five is held out
MIN_HELD_OUT = 16  # the fewest held-out images
MAX_HELD_OUT = 500  # the most held-out images
# Stretches of neighboring files that are held out: few split few bursts. On a folder
# sorted by class, 8 double the interval of independent images; 16 do not widen it.
HELD_OUT_STRETCHES = 16
DIGEST_DIGITS = 8  # hex digits of an image's digest; 1 pair in 4 billion shares it
DECODE_THREADS = 2

log = logging.getLogger("imagepiece_jax.recover")


class ImageSplit(NamedTuple):
    """Training images and held-out images."""

    training: Source
    held_out: Source
    stretch_of_image: np.ndarray  # by held-out image: the number of its stretch
    digests: str  # of the training images, as in `RecoveredVariant.learned`


def split_images(
    source: Source, batch_size: int, learned_digests: str = ""
) -> ImageSplit:
    """Hold out a fifth, 16 to 500 images, in evenly spaced stretches of neighbors.

    Frames of a burst have neighboring files. Of more than 10,000 images, 10,000 evenly
    spaced ones are used. Exact copies are dropped; near copies are not looked for.

    batch_size: the fewest images that are not held out
    learned_digests: of images that trained a recovered model, joined: not held out
    """
    sample = source.evenly_spaced(MAX_IMAGES)
    if sample is not source:
        count_text = f"{len(sample):,} of the {len(source):,} images"
        log.warning("%s are taken, evenly spaced", count_text)
    index_by_digest = read_digests(sample)
    digests = np.array([*index_by_digest])
    num_images = len(digests)
    num_needed = MIN_HELD_OUT + batch_size
    if num_images < num_needed:
        uses = f"{MIN_HELD_OUT} to hold out, and {batch_size} others"
        raise InputError(f"images has {num_images}, not {num_needed}: {uses}")
    used_digests = re.findall("." * DIGEST_DIGITS, learned_digests)
    candidates = np.flatnonzero(~np.isin(digests, used_digests))
    if len(candidates) < MIN_HELD_OUT:
        lack_text = f"{len(candidates)} that have not trained the model"
        raise InputError(f"images has only {lack_text}; {MIN_HELD_OUT} are needed")
    wanted_count = max(MIN_HELD_OUT, num_images // HELD_OUT_DIVISOR)
    most_count = min(MAX_HELD_OUT, num_images - batch_size, len(candidates))
    num_held_out = min(wanted_count, most_count)
    # The first images of every sixteenth.
    stretch_of_image = np.sort(np.arange(num_held_out) % HELD_OUT_STRETCHES)
    stretch_sizes = np.bincount(stretch_of_image)
    is_held_out = np.zeros(num_images, bool)
    sixteenths = np.array_split(candidates, HELD_OUT_STRETCHES)
    for sixteenth, stretch_size in zip(sixteenths, stretch_sizes, strict=True):
        is_held_out[sixteenth[:stretch_size]] = True
    sample_indices = np.array([*index_by_digest.values()])
    return ImageSplit(
        training=sample.subset(sample_indices[~is_held_out]),
        held_out=sample.subset(sample_indices[is_held_out]),
        stretch_of_image=stretch_of_image,
        digests="".join(digests[~is_held_out]),
    )


def read_digests(source: Source) -> dict[str, int]:
    """{digest: index} of the readable images; of exact copies the first counts."""

    def digest_or_damage(index):
        image = source[index]
        if image.pixels is None:
            return image.damage
        hasher = hashlib.blake2b(image.pixels.tobytes(), digest_size=DIGEST_DIGITS // 2)
        return hasher.hexdigest()

    index_by_digest = {}
    num_copies = 0
    indices = range(len(source))
    pool = concurrent.futures.ThreadPoolExecutor(available_cores())
    try:
        outcomes = pool.map(digest_or_damage, indices)
        for index in with_progress_bar(indices, "looking through the images"):
            outcome = next(outcomes)
            if not isinstance(outcome, str):  # the damage
                log.warning("%s: it is left out", outcome)
            elif outcome in index_by_digest:
                num_copies += 1
            else:
                index_by_digest[outcome] = index
    finally:  # after Ctrl-C, too: images that wait are not read
        pool.shutdown(cancel_futures=True)
    if num_copies:
        log.warning("%d copies of other images are left out", num_copies)
    return index_by_digest


def read_image_batches(
    source: Source, preprocessing: Callable[[np.ndarray], np.ndarray], batch_size: int
) -> list[dict[str, Any]]:
    """All images, in batches.

    A batch has "image", uint8 [devices, m, H, W, 3], "mask", False for padding and
    unreadable images, and "index", the place in the source; both are [devices, m].
    Raises InputError for an image that does not fit.
    """
    batches = Batches(
        source=source,
        transform=preprocessing,
        batch_size=batch_size,
        placement=parallel.process_placement(),
    )
    reader = batches.read_batches(DECODE_THREADS)
    return [batch | {"mask": batch["mask"] == 1} for batch in reader]
