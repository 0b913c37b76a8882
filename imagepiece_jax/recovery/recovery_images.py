"""A recovery's images: random crops to train on, and held-out images."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from imagepiece_jax.common import parallel
from imagepiece_jax.common.image_size import ImageSize
from imagepiece_jax.data.augment.random_crop import TrainTransform
from imagepiece_jax.data.batches import Batches
from imagepiece_jax.data.near_duplicates import DIGEST_DIGITS, read_scenes
from imagepiece_jax.data.source import Source, evenly_spaced_indices
from imagepiece_jax.errors import InputError
from imagepiece_jax.recovery.recovery_step import RecoveryRecipe

MAX_IMAGES = 10_000  # the most images that are read
# Smallest and largest share of an image's area in a random crop.
CROP_AREA = (0.4, 1.0)
HELD_OUT_FRACTION = 5  # one image in five is held out
MIN_HELD_OUT = 16  # the fewest held-out images
MAX_HELD_OUT = 500  # the most held-out images
MIN_SCENES = 5  # the fewest held-out scenes, for the interval
DECODE_THREADS = 2

log = logging.getLogger("imagepiece_jax.recover")


class ImageSplit(NamedTuple):
    """Training images and held-out images."""

    training: Source
    held_out: Source
    scenes: np.ndarray  # scene per held-out image
    num_scenes: int  # held-out scenes; 0: training has images like them
    digests: str  # of the training images, as in `RecoveredVariant.learned`


def split_images(
    source: Source, batch_size: int, known_digests: str = ""
) -> ImageSplit:
    """Hold out whole scenes of the readable images, evenly spaced.

    known_digests: of images whose scenes are not held out, joined
    """
    sample = source.evenly_spaced(MAX_IMAGES)
    if sample is not source:
        counts_text = f"{len(sample):,} of the {len(source):,} images"
        log.warning("%s are taken, evenly spaced", counts_text)
    readable_source, scene_of_image, digests = read_scenes(sample)
    num_images = len(readable_source)
    num_needed = MIN_HELD_OUT + batch_size
    if num_images < num_needed:
        raise InputError(
            f"images has {num_images}, but {num_needed} are needed: {MIN_HELD_OUT} to "
            f"hold out, and a batch of {batch_size}"
        )
    num_held_out = min(MAX_HELD_OUT, max(MIN_HELD_OUT, num_images // HELD_OUT_FRACTION))
    digest_starts = range(0, len(known_digests), DIGEST_DIGITS)
    known_digest_list = [known_digests[i : i + DIGEST_DIGITS] for i in digest_starts]
    known_scenes = scene_of_image[np.isin(digests, known_digest_list)]
    new_scene_of_image = scene_of_image[~np.isin(scene_of_image, known_scenes)]
    held_out_scenes = choose_scenes(new_scene_of_image, num_held_out)
    is_held_out = np.isin(scene_of_image, held_out_scenes)
    num_scenes = len(held_out_scenes)
    if num_scenes < MIN_SCENES or (~is_held_out).sum() < batch_size:
        log.warning(
            "most images are alike, so held-out images are like training "
            "images, and figures may be too good"
        )
        # Single images are held out; num_scenes tells the report.
        num_scenes = 0
        scene_of_image = np.arange(num_images)
        held_out_scenes = evenly_spaced_indices(num_images, num_held_out)
        is_held_out = np.isin(scene_of_image, held_out_scenes)
    held_out_indices = np.flatnonzero(is_held_out)
    num_measured = min(MAX_HELD_OUT, len(held_out_indices))
    spaced_indices = evenly_spaced_indices(len(held_out_indices), num_measured)
    measured_indices = held_out_indices[spaced_indices]
    return ImageSplit(
        training=readable_source.subset(np.flatnonzero(~is_held_out)),
        held_out=readable_source.subset(measured_indices),
        scenes=scene_of_image[measured_indices],
        num_scenes=num_scenes,
        digests="".join(np.array(digests)[~is_held_out]),
    )


def choose_scenes(
    scene_of_image: Int[np.ndarray, " images"], min_images: int
) -> Int[np.ndarray, " chosen"]:
    """Choose scenes with at least `min_images` in total, or none, to hold out."""
    _, first_images, unique_sizes = np.unique(
        scene_of_image, return_index=True, return_counts=True
    )
    # Larger scenes stay in training. If they have most images, no scene is chosen.
    is_small = unique_sizes <= min_images
    if 2 * unique_sizes[is_small].sum() < len(scene_of_image):
        return np.zeros(0, int)
    small_scenes = scene_of_image[np.sort(first_images[is_small])]
    scene_sizes = np.bincount(scene_of_image)
    # A third of the scenes, or MIN_HELD_OUT, is enough for the interval.
    num_chosen = max(MIN_SCENES, min(MIN_HELD_OUT, len(small_scenes) // 3))
    while num_chosen < len(small_scenes):
        spaced_indices = evenly_spaced_indices(len(small_scenes), num_chosen)
        chosen_scenes = small_scenes[spaced_indices]
        if scene_sizes[chosen_scenes].sum() >= min_images:
            return chosen_scenes
        num_chosen += 1
    return small_scenes


def make_crop_batches(
    source: Source, image_size: ImageSize, recipe: RecoveryRecipe, steps: int
) -> Batches:
    """Batches of random crops for `steps` steps."""
    return Batches(
        source=source,
        transform=TrainTransform(
            image_size, "random_resized", CROP_AREA, shift=0, flip=True
        ),
        batch_size=recipe.batch_size,
        placement=parallel.process_placement(),
        seed=recipe.seed,
        steps=range(steps),
    )


def read_image_batches(
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
        placement=parallel.process_placement(),
    )
    host_batches = []
    for batch in batches.read_batches(DECODE_THREADS):
        pixels_and_index = {name: batch[name] for name in ("image", "index")}
        host_batches.append({**pixels_and_index, "mask": batch["mask"] == 1})
    return host_batches
