"""The split of a set that has neither labels nor test images: one image in ten tests.

`recover` holds out other images (`training.recover.divided`).
"""

import logging

from imagepiece_jax.data.source import evenly_spaced
from imagepiece_jax.errors import InputError

ONE_IN = 10  # one image in ten is a test image
MAX_TEST_IMAGES = 1000

log = logging.getLogger("imagepiece_jax.data")


def split_files(files, split, place):
    """The training or the test images among the files of a set.

    Test images are a tenth of the files, evenly spaced and at most 1,000. A file that
    is named twice is in one split only, and tests only once.

    files: paths of all images of the set
    split: "train" or "val"
    place: the set, in words, for messages
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
