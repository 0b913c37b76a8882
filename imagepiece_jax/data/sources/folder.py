"""Folders of images: listing files, finding splits, opening folder:PATH."""

import logging
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

from imagepiece_jax.common.files import SYSTEM_NAMES
from imagepiece_jax.common.progress import notes
from imagepiece_jax.data import class_names
from imagepiece_jax.data.decode import IMAGE_EXTENSIONS
from imagepiece_jax.data.source import (
    SPLIT_NAMES,
    FileSource,
    check_num_classes,
    find_splits,
)
from imagepiece_jax.errors import InputError, NoLabels

log = logging.getLogger("imagepiece_jax.data")

SOME_EXTENSIONS = ".jpg, .png or .webp"
LOOKS_LIKE_A_SPLIT = re.compile(
    r"(train|val|valid|validation|dev|eval|evaluation|test)"
    r"([-_ ]?(ing|ation|set|data|images|split|\d+))*",
    re.IGNORECASE,
)


class FolderListing(NamedTuple):
    """Contents of a folder and its subfolders, as paths relative to a root."""

    images: list[str]
    left_out: list[str]  # all other files, and folders that are not read


def list_images(root: str | os.PathLike, inside: str = "") -> FolderListing:
    """List the images in the folder `inside` of `root`, and in its subfolders.

    Images have an ending in `IMAGE_EXTENSIONS`. A folder's files come before its subfolders,
    both sorted by name. Hidden files and folders, `SYSTEM_NAMES`, pipes and unreadable
    subfolders are left out.
    Raises InputError if there are no images.
    """
    listing = FolderListing([], [])
    seen = set()
    start = os.path.normpath(inside)
    waiting = [start]
    while waiting:
        folder = waiting.pop()
        path = os.path.join(root, folder)
        real = os.path.realpath(path)
        if real in seen:  # links may lead to a folder again, and in circles
            continue
        seen.add(real)
        try:
            folders, images, left_out = _folder_entries(path)
        except OSError:
            if folder == start:
                raise
            # First, because a note names only the first path left out.
            listing.left_out.insert(0, os.path.normpath(folder))
            continue
        for names, paths in ((images, listing.images), (left_out, listing.left_out)):
            paths += [os.path.normpath(os.path.join(folder, name)) for name in names]
        waiting += [os.path.join(folder, name) for name in reversed(folders)]
    if not listing.images:
        raise InputError(
            f"folder {pathlib.Path(root, inside)} holds no images (files ending in "
            f"{SOME_EXTENSIONS})"
        )
    return listing


def _folder_entries(folder):
    """Sorted names in a folder: (folders, images, other names)."""
    folders = []
    images = []
    left_out = []
    with os.scandir(folder) as entries:
        for entry in entries:
            names = left_out
            name = entry.name.lower()
            if not name.startswith(".") and name not in SYSTEM_NAMES:
                if os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():
                    names = folders
                elif name.endswith(IMAGE_EXTENSIONS) and _is_file(entry):
                    names = images
            names.append(entry.name)
    return sorted(folders), sorted(images), sorted(left_out)


def _is_file(entry):
    """Whether a folder's entry is a file, or a link to a missing file."""
    if entry.is_symlink():
        return os.path.isfile(entry) or not os.path.exists(entry)
    return entry.is_file()


def left_out_note(root: str | os.PathLike, left_out: list[str]) -> str | None:
    """Note on the paths left out of a folder; None without any."""
    if not left_out:
        return None
    first = os.path.join(root, left_out[0])
    count = len(left_out) - 1
    text = f"{first} is"
    if count:
        text = f"{first} and {count} more are"
    return (
        f"{text} left out: hidden or of a system, unreadable folders, or files without "
        f"an ending such as {SOME_EXTENSIONS}"
    )


def find_split_folders(
    folder: str | os.PathLike, labeled: bool = False
) -> dict[str, str]:
    """Find a folder's splits: {"train" or "val": folder name}; {} for class folders.

    labeled: splits hold class folders, so folders of images are not splits
    Raises InputError for folder names that look like splits, such as training.
    """
    folders, images, _ = _folder_entries(folder)
    splits = find_splits(folders, f"folder {folder}")
    other_folders = {*folders} - {*SPLIT_NAMES}
    alike = {*filter(LOOKS_LIKE_A_SPLIT.fullmatch, folders)}
    # A folder such as "evaluation" may be the validation split: test only stands in.
    is_whole = len(splits) == 2 and splits["val"] != "test"
    may_be_missed = not is_whole and len(alike) > 1 and bool(alike & other_folders)
    if not splits and not may_be_missed:
        return {}
    with_images = {name for name in folders if _has_images(folder, name)}
    if labeled and len(with_images) == len(folders):
        return {}
    if may_be_missed:
        raise InputError(
            f"folder {folder} holds {' and '.join(folders)}; splits are called "
            f"{', '.join(SPLIT_NAMES)}: rename the folders, or give one of them"
        )
    # Classes may be called train or test, too. Such a folder has images itself or is
    # the only split, and another folder or `folder` itself has images.
    is_class = len(splits) == 1 or with_images.intersection(splits.values())
    if is_class and (with_images & other_folders or (images and not labeled)):
        return {}
    return splits


def _has_images(folder, name):
    try:
        _, images, _ = _folder_entries(os.path.join(folder, name))
    except OSError:
        return False
    return bool(images)


def find_train_folder(folder: str | os.PathLike) -> str | os.PathLike:
    """Find the folder to learn from: train, or `folder` itself without splits."""
    folders, _, _ = _folder_entries(folder)
    names = " and ".join(name for name in SPLIT_NAMES if name in folders)
    splits = find_split_folders(folder)
    if not names:
        return folder
    if not splits:
        notes.info(f"note: {folder} holds {names} as classes; all are used")
        return folder
    if "train" not in splits:
        raise InputError(f"{folder} holds {names}; give the training folder")
    notes.info(f"note: {folder} holds {names}; the images in train are used")
    return os.path.join(folder, "train")


def open_folder(root, split, num_classes, labeled, names_of_model, *_):
    """Open folder:ROOT: ROOT/train/CLASS and ROOT/val/CLASS, or ROOT/CLASS for "val".

    Arguments and errors are as for `open_source`.
    """
    data = f"folder {root}"
    splits = find_split_folders(root, labeled)
    inside = splits.get(split, split)
    if split == "val" and not splits:
        inside = ""  # validation images lie in the root itself
    if not labeled:
        files, left_out = list_images(root, inside)
        return _make_source(root, inside, files, np.full(len(files), -1), left_out)
    folders, left_out = _class_folders(root, inside)
    in_order = folders  # label order
    if len(splits) == 2:
        _check_split_classes(data, root, splits)
        in_order, _ = _class_folders(root, splits["train"])
    if split == "train":  # validation images may lack classes
        check_num_classes(num_classes, len(folders), data)
    num_classes = num_classes or len(folders)
    if names_of_model is None:
        names_of_model = [*map(_printable_name, in_order)]
        check_num_classes(num_classes, len(in_order), data)
        if pair := class_names.misordered_pair(names_of_model):
            raise InputError(
                f"{data} has class {pair[0]!r} before {pair[1]!r} as text; pad the "
                "numbers with zeros, or load the model with class_names="
            )
    label_of = class_names.labels_by_name(names_of_model)
    files = []
    labels = []
    names = {}  # {label: folder name}
    for folder in folders:
        name = _printable_name(folder)
        key = class_names.canonical_name(name)
        label = label_of.get(key)
        if label is None and key in label_of:
            raise InputError(f"{data}: two classes have the name {ascii(key)}")
        if label is None:
            raise InputError(
                f"{data} has class {name!r}, but no class of the model's {num_classes} "
                "has this name; rename the folder, or load the model with class_names="
            )
        if names.setdefault(label, name) != name:
            raise InputError(
                f"{data} has class {label} twice, as {names[label]!r} and {name!r}"
            )
        listing = list_images(root, os.path.join(inside, folder))
        files += listing.images
        labels += [label] * len(listing.images)
        left_out += listing.left_out
    names = tuple(map(names.get, range(num_classes)))
    return _make_source(root, inside, files, labels, left_out, num_classes, names)


def _make_source(root, inside, files, labels, left_out, *classes):
    if note := left_out_note(root, left_out):
        log.warning(note)
    source = FileSource(root, files, labels, *classes)
    source.split = inside
    return source


def _printable_name(name):
    """Printable form of a folder name, which may be any bytes."""
    return os.fsencode(name).decode("utf-8", "replace")


def _class_folders(root, inside):
    """(names of the class folders in root/inside, paths of all other entries)."""
    folder = pathlib.Path(root, inside)
    if inside and not folder.is_dir():
        raise InputError(
            f"folder {root} has no folder {inside}; make {root}/train/CLASS and "
            f"{root}/val/CLASS with the images of each class, or give a csv"
        )
    names, *loose = _folder_entries(folder)
    if not names:
        raise NoLabels(f"folder {folder} has no class folders with images")
    return names, [os.path.join(inside, name) for name in sum(loose, [])]


def _check_split_classes(data, root, splits):
    """Check that train and val have equal classes and share no folder."""
    names = []
    folders = []
    for inside in splits.values():
        classes, _ = _class_folders(root, inside)
        names.append({*map(class_names.composed_name, classes)})
        paths = [os.path.join(root, inside, name) for name in classes]
        folders.append({*map(os.path.realpath, paths)})
    if set.intersection(*folders):
        raise InputError(f"{data} links train and val to the same images")
    if names[0] != names[1]:
        raise InputError(
            f"{data} has class {min(names[0] ^ names[1])!r} in only one of train and "
            f"{splits['val']}"
        )
