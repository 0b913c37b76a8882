"""Test images of a set without labels that says of no image that it is one."""

import logging

from imagepiece_jax.data.source import evenly_spaced
from imagepiece_jax.errors import InputError

SHARE = 10  # one of so many images
MOST = 1000

log = logging.getLogger("imagepiece_jax.data")


def part(files, split, place):
    """The files of a split, of all `files` of a set: a tenth are test images.

    They are evenly spaced and at most 1,000. A file that is named twice is in one
    split, and a test image once.

    split: "train" or "val"
    place: of the set, for messages
    Raises InputError for fewer than two files.
    """
    different = [*dict.fromkeys(files)]
    if len(different) < 2:
        raise InputError(
            f"has {len(different)} image and no test images",
            place=place,
            allowed="at least two images",
        )
    count = max(1, min(MOST, len(different) // SHARE))
    tests = {different[index] for index in evenly_spaced(len(different), count)}
    if split == "train":
        return [file for file in files if file not in tests]
    text = "%s has no test images: %s of its %s images are held out, evenly spaced"
    log.warning(text, place, f"{count:,}", f"{len(different):,}")
    return [file for file in different if file in tests]
