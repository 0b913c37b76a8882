"""The split of a set that has neither labels nor test images: one image in ten tests.

`recover` holds out other images (`deploy.recover.recovery_images.divided`).
"""

import logging
from collections.abc import Sequence

from imagepiece_jax.data.near_duplicates import copies_of_tests
from imagepiece_jax.data.source import evenly_spaced
from imagepiece_jax.errors import InputError

ONE_IN = 10  # one image in ten is a test image
MAX_TEST_IMAGES = 1000
MAX_READ = 100_000  # among more images copies are not looked for: minutes of reading

log = logging.getLogger("imagepiece_jax.data")


def split_files(root: str, files: Sequence[str], split: str, place: str) -> list[str]:
    """The training or the test images among the files of a set.

    Test images are a tenth of the files, evenly spaced and at most 1,000. A file that
    is named twice is in one split only, and tests only once. Other copies of a test
    image (`copies`) are in neither split; among more than 100,000 files they are not
    looked for, which is logged.

    root: the folder that the files are relative to
    files: paths of all images of the set
    split: "train" or "val"
    place: the set, in words, for messages
    """
    different = [*dict.fromkeys(files)]
    if len(different) < 2:
        raise InputError(f"{place} has {len(different)} image, and no test images")
    total = len(different)
    count = max(1, min(MAX_TEST_IMAGES, total // ONE_IN))
    tests = [different[index] for index in evenly_spaced(total, count)]
    if split == "val":
        _, copies = copies_of_tests(root, [], tests)
        kept = [file for file in tests if file not in copies]
        log.warning(
            "%s has no test images: %s of its %s images are held out, evenly spaced",
            place,
            f"{len(kept):,}",
            f"{total:,}",
        )
        return kept
    held_out = {*tests}
    others = [file for file in files if file not in held_out]
    if total > MAX_READ:
        log.warning(
            "copies of the images held out are not looked for among the %s of %s, "
            "which are more than %s",
            f"{total:,}",
            place,
            f"{MAX_READ:,}",
        )
        return others
    copies, _ = copies_of_tests(root, others, tests)
    if copies:
        log.warning(
            "%s of the images of %s are copies of images held out and left out, such "
            "as %s",
            f"{len(copies):,}",
            place,
            min(copies),
        )
    return [file for file in others if file not in copies]
