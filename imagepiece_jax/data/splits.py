"""Test images held out of a set without labels that has no test images of its own."""

import logging

from imagepiece_jax.data.source import evenly_spaced
from imagepiece_jax.errors import InputError

ONE_IN = 10  # one image in ten is a test image
MAX_TEST_IMAGES = 1000

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
    total = len(different)
    count = max(1, min(MAX_TEST_IMAGES, total // ONE_IN))
    tests = {different[index] for index in evenly_spaced(total, count)}
    if split == "train":
        return [file for file in files if file not in tests]
    log.warning(
        "%s has no test images: %s of its %s images are held out, evenly spaced",
        place,
        f"{count:,}",
        f"{total:,}",
    )
    return [file for file in different if file in tests]
