"""Image files named by a user: folders expanded, unreadable files reported."""

import pathlib
import sys

import numpy as np

from imagepiece_jax.data.decode import EXTENSIONS, UnreadableImage, decode, size
from imagepiece_jax.data.transforms import EvalTransform
from imagepiece_jax.errors import InputError


def find(words: list[str]) -> list[pathlib.Path]:
    """Return the files that `words` name; a folder stands for its images, by name."""
    if not words:
        raise InputError("no image is named; allowed are image files and folders")
    files = []
    for path in map(pathlib.Path, words):
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(f for f in path.iterdir() if f.suffix.lower() in EXTENSIONS)
        if not inside:
            raise InputError(
                f"folder {path} holds no image; allowed are {', '.join(EXTENSIONS)} "
                "in the folder itself"
            )
        files += inside
    return files


def note(files: list[pathlib.Path], transform: EvalTransform) -> str | None:
    """`transform.note` of the readable images among `files`, upright as they are shown.

    Their size is looked at as it is stored, so images on their side have another.
    """
    return transform.note(filter(None, map(size, files)), len(files))


def read(
    files: list[pathlib.Path], transform: EvalTransform
) -> tuple[np.ndarray, list[str]]:
    """Return (uint8 [B, H, W, 3], names) of the readable images among `files`.

    An unreadable file is skipped and reported; InputError if no image is left, and for
    one that does not fit `transform`.
    """
    images, names = [], []
    for file in files:
        if not file.is_file():
            print(f"{file} is left out: no such file", file=sys.stderr)
            continue
        try:
            image = decode(file, str(file), upright=True)
        except UnreadableImage as error:
            print(f"{error.name} is left out: {error.reason}", file=sys.stderr)
            continue
        try:
            images.append(transform(image))
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        names.append(file.name)
    if not images:
        raise InputError(
            f"none of {len(files)} files can be read, the first is {files[0]}; allowed "
            "are images"
        )
    return np.stack(images), names
