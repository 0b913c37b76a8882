"""The images of a recovery: which are learned from, and batches of those held out."""

from collections.abc import Callable
from typing import Any

import numpy as np

from imagepiece_jax.common import parallel
from imagepiece_jax.data.batches import Batches
from imagepiece_jax.data.source import Source, evenly_spaced
from imagepiece_jax.errors import InputError

HELD_OUT = 5  # one image in five is held out
MIN_HELD_OUT = 16  # the fewest images that are held out
MAX_HELD_OUT = 500  # the most images that are held out
THREADS = 2  # threads that read and decode images


def divided(source: Source, batch_size: int) -> tuple[Source, Source]:
    """(images to learn from, images that are held out), the latter evenly spaced.

    Raises InputError for too few images.
    """
    total = len(source)
    needed = MIN_HELD_OUT + batch_size
    if total < needed:
        needs = f"{MIN_HELD_OUT} to hold out, and a batch of {batch_size}"
        raise InputError(f"images has {total}, too few; it takes {needs}")
    held = min(MAX_HELD_OUT, max(MIN_HELD_OUT, total // HELD_OUT))
    held_out = evenly_spaced(total, held)
    others = np.setdiff1d(np.arange(total), held_out)
    return source.subset(others), source.subset(held_out)


def evaluation_batches(
    source: Source, preprocessing: Callable[[np.ndarray], np.ndarray], batch_size: int
) -> list[dict[str, Any]]:
    """All images in batches of "image", uint8 [devices, m, H, W, 3], and two arrays.

    "mask", [devices, m], is false for the padding of the last batch, and for an image
    that cannot be read any more; "index", [devices, m], is the place of an image in the
    source.
    Raises InputError for an image that does not fit.
    """
    batches = Batches(
        source=source,
        transform=preprocessing,
        batch_size=batch_size,
        placement=parallel.placement(),
    )
    found = []
    for batch in batches.read(THREADS):
        part = {name: batch[name] for name in ("image", "index")}
        found.append({**part, "mask": batch["mask"] == 1})
    return found
