"""Image files: all of a folder, by one rule, and those that a command line names."""

import csv
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from imagepiece_jax.common.progress import counted
from imagepiece_jax.data import decode
from imagepiece_jax.data.decode import EXTENSIONS
from imagepiece_jax.errors import InputError

# Names of the folders of a set's splits, in small letters or capitals; the first that
# is there counts.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test", "testing"),
}
PURPOSES = {"train": "learned from", "val": "measured on"}


class Listing(NamedTuple):
    """Files of a folder and its sub-folders, by paths relative to a root."""

    images: list[str]
    left_out: list[str]  # files of other kinds, and links that lead nowhere
    folders: dict[str, str]  # each folder that was read, by its real path


def list_images(root: str | os.PathLike, inside: str = "") -> Listing:
    """The images in the folder `inside` of `root`, and in its sub-folders.

    An image is a file that ends in one of `decode.EXTENSIONS`. Files of a folder come
    in order of their names, and before those of its sub-folders. Hidden files and
    folders are passed over, and a folder that links lead to again is read once.

    Raises InputError for a folder that cannot be read.
    """
    found = Listing([], [], {})
    _add(found, root, inside)
    return found


def _add(found, root, inside):
    """Add the files of a folder and of its sub-folders to a Listing."""
    folder = os.path.join(root, inside) if inside else root
    real = os.path.realpath(folder)
    if real in found.folders:
        return
    found.folders[real] = inside
    sub_folders = []
    for entry in entries(folder):
        path = os.path.join(inside, entry.name)
        if leads_to(entry.is_dir):
            sub_folders.append(path)
        elif entry.name.lower().endswith(EXTENSIONS) and leads_to(entry.is_file):
            found.images.append(path)
        else:
            found.left_out.append(path)
    for path in sub_folders:
        _add(found, root, path)


def entries(folder: str | os.PathLike) -> list[os.DirEntry]:
    """Entries of a folder by name, hidden ones left out; InputError for none."""
    try:
        with os.scandir(folder) as found:
            shown = [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})",
            place=f"folder {folder}",
        ) from error
    return sorted(shown, key=lambda entry: entry.name)


def leads_to(kind) -> bool:
    """`kind()`, an entry's is_file or is_dir; False for links that lead nowhere."""
    try:
        return kind()
    except OSError:  # a loop of links, or a target in a folder that cannot be read
        return False


def left_out_note(root: str | os.PathLike, left_out: list[str]) -> str | None:
    """A note on the files that are `left_out`; None where there are none."""
    if not left_out:
        return None
    first = os.path.join(root, left_out[0])
    others = len(left_out) - 1
    left = f"{first} is"
    if others:
        left = f"{first} and {others} more are"
    endings = decode.SOME_EXTENSIONS
    return f"{left} left out; images are files with endings such as {endings}"


def find_splits(folder: str | os.PathLike) -> dict[str, pathlib.Path]:
    """{"train": a folder, "val": a folder}: those of the two that a folder holds.

    Raises InputError for a folder that cannot be read.
    """
    inside = {}
    for entry in entries(folder):
        if leads_to(entry.is_dir):
            inside[entry.name.lower()] = pathlib.Path(folder, entry.name)
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        there = [inside[name] for name in names if name in inside]
        if there:
            found[split] = there[0]
    return found


def split_folder(
    folder: str | os.PathLike, split: str | None
) -> tuple[pathlib.Path, str | None]:
    """(the folder whose images `folder` stands for, a note on it or None).

    A folder that holds train and val stands for train where images are learned from,
    and for val where they are measured on.

    split: "train" or "val"; None: the images of both
    """
    folder = pathlib.Path(folder)
    parts = find_splits(folder)
    if len(parts) < len(SPLIT_FOLDERS):
        return folder, None
    names = " and ".join(path.name for path in parts.values())
    if split is None:
        return folder, f"{folder} holds {names}; the images of both are taken"
    taken = parts[split]
    return taken, f"{folder} holds {names}; {taken.name} is {PURPOSES[split]}"


def find_images(words: list[str], split: str | None = None) -> list[pathlib.Path]:
    """The files that `words` name; a folder stands for its images, by `list_images`.

    Prints which files of a folder are left out, and which of its splits is taken.
    Raises InputError where there is none.

    split: which images of a folder with splits are taken, as `split_folder` takes it
    """
    if not words:
        raise InputError("no images are named", hint="name image files or folders")
    files = []
    for path in map(pathlib.Path, words):
        if path.is_dir():
            files += map(pathlib.Path, _of_folder(path, split))
        else:
            files.append(path)
    return files


def _of_folder(path, split):
    """Yield the paths of a folder's images, as `find_images` takes them."""
    path, split_note = split_folder(path, split)
    found = list_images(path)
    if not found.images:
        raise decode.no_image(path)
    for note in (split_note, left_out_note(path, found.left_out)):
        if note:
            print(f"note: {note}", flush=True)
    for image in found.images:
        yield os.path.join(path, image)


def listed(names: Iterable[str]) -> Iterator[str]:
    """Yield the paths of image files, one after the other; none is opened.

    names: folders, also as folder:PATH, which stand for their images, by `list_images`;
        tables (.csv, csv:FILE), for their column filename, relative to the table; lists
        (.txt), for their lines; other paths stand for themselves
    Raises InputError for a path that is not there, and for a table without the column.
    """
    for name in names:
        path = _path_of(name)
        if os.path.isdir(path):
            yield from _of_folder(path, None)
        elif path.lower().endswith(".csv"):
            yield from _of_table(path)
        elif path.lower().endswith(".txt"):
            yield from _of_list(path)
        else:
            yield path


def check_there(names: Iterable[str]):
    """Raise InputError for the first of the `names` of `listed` that is not there."""
    for name in names:
        if not os.path.exists(_path_of(name)):
            allowed = "folders, images, a .csv with a column filename, a .txt of paths"
            raise InputError(
                f"is {name}, which does not exist",
                field="images",
                value=name,
                allowed=allowed,
            )


def _path_of(name):
    """The path in "folder:PATH", "csv:FILE" and "PATH"."""
    kind, _, path = name.partition(":")
    if kind not in ("folder", "csv") or os.path.exists(name):
        path = name
    return os.path.expanduser(path)


def _of_table(path):
    """Yield the paths in the column filename of a table."""
    with _opened(path) as file:
        table = csv.DictReader(file, restval="")
        columns = [name.strip() for name in table.fieldnames or ()]
        table.fieldnames = columns
        if "filename" not in columns:
            raise InputError(
                f"has no column 'filename' (found: {', '.join(columns) or 'none'})",
                place=path,
            )
        folder = os.path.dirname(path)
        for row in table:
            yield os.path.join(folder, row["filename"])


def _of_list(path):
    """Yield the lines of a file that are not empty."""
    with _opened(path) as file:
        for line in file:
            if name := line.rstrip("\r\n"):
                yield name


def _opened(path):
    """A file of text, names that are not UTF-8 among it. Raises InputError."""
    try:
        return open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", place=path) from error


def sizes_note(files: list[pathlib.Path], transform) -> str | None:
    """`transform.note` of the readable images among `files`, upright as they are shown.

    Sizes are those that are stored, so images on their side have another.
    """
    sizes = [decode.size(file) for file in files]
    readable = [size for size in sizes if size]
    return transform.note(readable, len(files))


def read_images(files: list[pathlib.Path], transform) -> tuple[np.ndarray, list[str]]:
    """The readable images among `files`; why others are left out is printed.

    Returns (uint8 [B, H, W, 3], their names).
    Raises InputError if no image is left, and for one that does not fit `transform`.
    """
    images = []
    names = []
    for file in counted(files, "reading images"):
        if not file.is_file():
            print(f"{file} is left out: no such file", file=sys.stderr)
            continue
        try:
            image = decode.decode(file, str(file), upright=True)
        except decode.UnreadableImage as error:
            print(f"{error.place} is left out: {error.value}", file=sys.stderr)
            continue
        try:
            images.append(transform(image))
        except InputError as error:
            raise error.inside(place=file) from error
        names.append(file.name)
    if not images:
        raise InputError(
            f"none of {len(files)} files can be read, the first is {files[0]}",
            allowed="images",
        )
    return np.stack(images), names
