"""Training images without labels: all those in a folder, however deep."""

import os

from imagepiece_jax.data.decode import EXTENSIONS
from imagepiece_jax.errors import InputError


def find(root: str, split: str, apart: str) -> list[str]:
    """Files of images in the folder root/split, by name, relative to `root`.

    Hidden ones are left out. InputError where there are none, and where the folder, or
    one in it, is root/`apart` or in it, by a link: those images are tested on.
    """
    folder, tested = os.path.join(root, split), os.path.join(root, apart)
    tested_on, seen, files = os.path.realpath(tested), set(), []
    for path, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()  # a link to what has been read
            continue
        seen.add(real)
        if os.path.commonpath((real, tested_on)) == tested_on:
            raise InputError(
                f"folder {path} is a part of {tested}, by a link: training needs "
                "images of its own"
            )
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [
            os.path.relpath(os.path.join(path, name), root)
            for name in sorted(names)
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    if not files:
        raise InputError(
            f"folder {folder} holds no image: allowed are {', '.join(EXTENSIONS)}"
        )
    return files
