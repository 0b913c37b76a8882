"""Images that a command line names."""

import pathlib
import sys

import numpy as np

from imagepiece_jax.data import decode
from imagepiece_jax.data.decode import EXTENSIONS
from imagepiece_jax.errors import InputError, within


def find_images(words: list[str]) -> list[pathlib.Path]:
    """The files that `words` name; a folder stands for its images, in order of name.

    Raises InputError where there is none.
    """
    if not words:
        raise InputError("no images are named", hint="name image files or folders")
    files = []
    for path in map(pathlib.Path, words):
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(f for f in path.iterdir() if f.suffix.lower() in EXTENSIONS)
        if not inside:
            raise decode.no_image(f"{path} itself")
        files += inside
    return files


def sizes_note(files: list[pathlib.Path], transform) -> str | None:
    """`transform.note` of the readable images among `files`, upright as they are shown.

    Sizes are those that are stored, so images on their side have another.
    """
    return transform.note(filter(None, map(decode.size, files)), len(files))


def read_images(files: list[pathlib.Path], transform) -> tuple[np.ndarray, list[str]]:
    """The readable images among `files`; why others are left out is printed.

    Returns (uint8 [B, H, W, 3], their names).
    Raises InputError if no image is left, and for one that does not fit `transform`.
    """
    images, names = [], []
    for file in files:
        if not file.is_file():
            print(f"{file} is left out: no such file", file=sys.stderr)
            continue
        try:
            image = decode.decode(file, str(file), upright=True)
        except decode.UnreadableImage as error:
            print(f"{error.place} is left out: {error.value}", file=sys.stderr)
            continue
        with within(place=file):
            images.append(transform(image))
        names.append(file.name)
    if not images:
        problem = f"none of {len(files)} files can be read, the first is {files[0]}"
        raise InputError(problem, allowed="images")
    return np.stack(images), names
