"""Folders of images: all files of one by one rule, its splits, and folder:PATH.

folder:PATH has images in PATH/train/CLASS and PATH/val/CLASS, or to test PATH/CLASS.
"""

import logging
import os
import pathlib
from typing import NamedTuple

from imagepiece_jax.data import class_names
from imagepiece_jax.data.decode import EXTENSIONS, SOME_EXTENSIONS, no_image
from imagepiece_jax.data.source import FileSource, check_num_classes
from imagepiece_jax.errors import InputError

log = logging.getLogger("imagepiece_jax.data")

# Names of the folders of a set's splits; the first that is there counts.
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "validation", "test")}
PURPOSES = {"train": "learned from", "val": "measured on"}


class Listing(NamedTuple):
    """Files of a folder and its sub-folders, by paths relative to a root."""

    images: list[str]
    left_out: list[str]  # files of other kinds


def list_images(root: str | os.PathLike, inside: str = "") -> Listing:
    """The images in the folder `inside` of `root`, and in its sub-folders.

    An image is a file that ends in one of `EXTENSIONS`. Files of a folder come in order
    of their names, and before those of its sub-folders. Hidden files and folders are
    passed over, and a folder that links lead to again is read once.
    """
    found = Listing([], [])
    seen = set()
    start = os.path.join(root, inside)
    for folder, folders, files in os.walk(start, onerror=_stop, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(_is_shown, folders))
        place = os.path.relpath(folder, root)
        for name in sorted(filter(_is_shown, files)):
            path = os.path.normpath(os.path.join(place, name))
            if name.lower().endswith(EXTENSIONS):
                found.images.append(path)
            else:
                found.left_out.append(path)
    return found


def _stop(error):
    raise error


def _is_shown(name):
    return not name.startswith(".")


def left_out_note(root: str | os.PathLike, left_out: list[str]) -> str | None:
    """A note on the files that are `left_out`; None where there are none."""
    if not left_out:
        return None
    first = os.path.join(root, left_out[0])
    others = len(left_out) - 1
    left = f"{first} is"
    if others:
        left = f"{first} and {others} more are"
    endings = SOME_EXTENSIONS
    return f"{left} left out; images are files with endings such as {endings}"


def find_splits(folder: str | os.PathLike) -> dict[str, pathlib.Path]:
    """{"train": a folder, "val": a folder}: those of the two that a folder holds."""
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        paths = [pathlib.Path(folder, name) for name in names]
        there = [path for path in paths if path.is_dir()]
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


def open_folder(root, split, num_classes, names_of_model):
    """The images of a split of folder:ROOT, with arguments of `open_source`."""
    place = f"folder {root}"
    splits = find_splits(root)
    inside = split
    if split in splits:
        inside = splits[split].name
    elif split == "val" and not splits:
        inside = ""  # classes of test images
    names, left_out = _classes(root, inside)
    if len(splits) == 2:
        _check_splits(place, root, splits)
    if split == "train":  # a test may lack classes
        check_num_classes(num_classes, len(names), place)
    num_classes = num_classes or len(names)
    # Names of folders may be any bytes; those of classes are printed.
    shown = [os.fsencode(name).decode("utf-8", "replace") for name in names]
    by_label = _labels(place, shown, num_classes, names_of_model)
    files = []
    labels = []
    for label, name in zip(by_label, names, strict=True):
        found = list_images(root, os.path.join(inside, name))
        if not found.images:
            raise no_image(os.path.join(root, inside, name))
        files += found.images
        labels += [label] * len(found.images)
        left_out += found.left_out
    if note := left_out_note(root, left_out):
        log.warning(note)
    names = tuple(map(by_label.get, range(num_classes)))
    return FileSource(root, files, labels, num_classes, names)


def _classes(root, inside):
    """(names of the folders of classes in root/inside, paths of what is no folder)."""
    folder = pathlib.Path(root, inside)
    if inside and not folder.is_dir():
        raise InputError(
            f"folder {root} has no folder {inside}; make {root}/train/CLASS and "
            f"{root}/val/CLASS with the images of each class, or give a csv"
        )
    names = []
    loose = []
    for name in sorted(filter(_is_shown, os.listdir(folder))):
        if os.path.isdir(os.path.join(folder, name)):
            names.append(name)
        else:
            loose.append(os.path.join(inside, name))
    if not names:
        raise InputError(
            f"folder {folder} has no folders of classes, each with its images"
        )
    return names, loose


def _check_splits(place, root, splits):
    """Check that train and val have the same classes, in different folders."""
    names = {}
    folders = {}
    for split, path in splits.items():
        names[split], _ = _classes(root, path.name)
        folders[split] = {os.path.realpath(path / name) for name in names[split]}
    if folders["train"] & folders["val"]:
        raise InputError(f"{place} has the same images in train and val, by a link")
    difference = {*names["train"]} ^ {*names["val"]}
    if difference:
        raise InputError(
            f"{place} has class {min(difference)!r} in only one of train and val"
        )


def _labels(place, names, num_classes, names_of_model):
    """{label: name} of folders of classes, in their order.

    place: the folder, for errors
    names: of the folders, sorted as text
    names_of_model: that decide; None: the order of the folders does
    """
    if names_of_model is None:
        check_num_classes(num_classes, len(names), place)
        if two := class_names.two_orders(names):
            raise InputError(
                f"{place} has class {two[0]!r} before {two[1]!r} as text; write the "
                "numbers with zeros in front, or load the model with class_names="
            )
        return dict(enumerate(names))
    known = class_names.labels_by_name(names_of_model)
    found = {}
    for name in names:
        label = known.get(class_names.canonical(name))
        if label is None:
            raise InputError(
                f"{place} has class {name!r}, which is not the name of one of the "
                f"model's {num_classes} classes; rename the folder, or load the model "
                "with class_names="
            )
        if label in found:
            raise InputError(
                f"{place} has class {label} twice, as {found[label]!r} and {name!r}"
            )
        found[label] = name
    return found
