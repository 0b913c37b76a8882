"""Folders of images: listing files, finding splits, opening folder:PATH."""

import collections
import logging
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.common.files import AnyPath
from imagepiece_jax.common.progress import notes
from imagepiece_jax.data import class_names
from imagepiece_jax.data.decode import image_extensions
from imagepiece_jax.data.source import (
    SPLIT_NAMES,
    FileSource,
    check_num_classes,
    find_splits,
)
from imagepiece_jax.errors import InputError, NoLabels

log = logging.getLogger("imagepiece_jax.data")

# Folders that systems and NAS put beside images: their thumbnails would be a class.
SYSTEM_FOLDERS = {"@eadir", "#recycle", "__macosx", "lost+found", "$recycle.bin"}
SYSTEM_FOLDERS |= {"system volume information"}


class FolderListing(NamedTuple):
    """Contents of a folder and its subfolders, as paths relative to a root."""

    image_paths: list[str]
    left_out_paths: list[str]  # all other files, and folders that are not read


def list_images(root: str | os.PathLike, subfolder: str = "") -> FolderListing:
    """List the images in root/subfolder, and in the folders below it.

    Images have an ending of `image_extensions`. A folder's files come before its
    subfolders, both sorted by name. Hidden files and folders, pipes and unreadable
    subfolders are left out.
    Raises InputError if there are no images.
    """
    listing = FolderListing([], [])
    seen_folders = set()
    start_folder = os.path.normpath(subfolder)
    waiting_folders = [start_folder]
    while waiting_folders:
        folder = waiting_folders.pop()
        path = os.path.join(root, folder)
        real_path = os.path.realpath(path)
        if real_path in seen_folders:  # links may lead to a folder again, in circles
            continue
        seen_folders.add(real_path)
        try:
            folder_names, *names_by_kind = _list_entries(path)
        except OSError:
            if folder == start_folder:
                raise
            # First, because a note names only the first path left out.
            listing.left_out_paths.insert(0, os.path.normpath(folder))
            continue
        for paths, names in zip(listing, names_by_kind, strict=True):
            paths += [os.path.normpath(os.path.join(folder, name)) for name in names]
        waiting_folders += [os.path.join(folder, name) for name in folder_names[::-1]]
    if not listing.image_paths:
        note = left_out_note(root, listing.left_out_paths) or "it is empty"
        path = pathlib.Path(root, subfolder)
        raise InputError(f"folder {path} holds no images: {note}")
    return listing


def _list_entries(folder):
    """Sorted names in a folder: (folders, images, other names)."""
    folder_names = []
    image_names = []
    other_names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            names_of_kind = other_names
            lower_name = entry.name.lower()
            if not lower_name.startswith(".") and lower_name not in SYSTEM_FOLDERS:
                if os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():
                    names_of_kind = folder_names
                elif lower_name.endswith(image_extensions()) and _is_file(entry):
                    names_of_kind = image_names
            names_of_kind.append(entry.name)
    return sorted(folder_names), sorted(image_names), sorted(other_names)


def _is_file(entry):
    """Whether a folder's entry is a file, or a link to a missing file."""
    if entry.is_symlink():
        return os.path.isfile(entry) or not os.path.exists(entry)
    return entry.is_file()


def left_out_note(root: str | os.PathLike, left_out_paths: list[str]) -> str | None:
    """Note on the paths left out of a folder; None without any."""
    names = map(os.path.basename, left_out_paths)
    endings = [os.path.splitext(name)[1].lower() or "without ending" for name in names]
    if not endings:
        return None
    counts = [f"{n} {ending}" for ending, n in collections.Counter(endings).items()]
    advice = " (pip install pillow-heif)" if {".heic", ".heif"} & {*endings} else ""
    example = os.path.join(root, left_out_paths[0])
    return f"{', '.join(counts)} left out{advice}, such as {example}"


def find_split_folders(folder: AnyPath, labeled: bool = False) -> dict[str, str]:
    """Find a folder's splits: {"train" or "val": folder name}; {} for class folders.

    labeled: splits hold class folders, so folders of images are not splits
    """
    folders, image_names, _ = _list_entries(folder)
    splits = find_splits(folders, f"folder {folder}")
    image_folders = {name for name in folders if _has_images(folder, name)}
    if labeled and len(image_folders) == len(folders):
        return {}
    # Classes may be called train or test, too. Such a folder has images itself or is
    # the only split, and another folder or `folder` itself has images.
    may_be_classes = len(splits) == 1 or image_folders.intersection(splits.values())
    has_other_images = image_folders - {*SPLIT_NAMES} or (image_names and not labeled)
    return {} if may_be_classes and has_other_images else splits


def _has_images(folder, name):
    try:
        return bool(_list_entries(os.path.join(folder, name))[1])
    except OSError:
        return False


def find_folder_images(folder: AnyPath, only_train: bool = False) -> list[str]:
    """Paths of a folder's images; notes name left-out files and the split in use.

    only_train: take the images in train alone, if the folder has splits
    Raises InputError for splits without train.
    """
    splits = find_split_folders(folder) if only_train else {}
    if splits:
        notes.info(f"note: {folder} has splits; the images in train are used")
        folder = os.path.join(folder, "train")
    listing = list_images(folder)
    if note := left_out_note(folder, listing.left_out_paths):
        notes.info(f"note: {note}")
    return [os.path.join(folder, path) for path in listing.image_paths]


def open_class_folders(
    root: str,
    split: str,
    num_classes: int | None,
    labeled: bool,
    model_names: class_names.ClassNames | None,
    *_: Any,
) -> FileSource:
    """Open folder:ROOT: ROOT/train/CLASS and ROOT/val/CLASS, or ROOT/CLASS for "val".

    Arguments and errors are as for `open_source`.
    """
    title = f"folder {root}"
    splits = find_split_folders(root, labeled)
    subfolder = splits.get(split, split)
    if split == "val" and not splits:
        subfolder = ""  # validation images lie in the root itself
    if not labeled:
        listing = list_images(root, subfolder)
        no_labels = np.full(len(listing.image_paths), -1)
        return _make_source(root, subfolder, listing, no_labels)
    class_folders, left_out_paths = _list_class_folders(root, subfolder)
    folders_by_label = class_folders
    if len(splits) == 2:
        folders_by_label = _list_class_folders(root, splits["train"])[0]
        val_folders = _list_class_folders(root, splits["val"])[0]
        train_classes = {*map(class_names.composed_name, folders_by_label)}
        val_classes = {*map(class_names.composed_name, val_folders)}
        split_paths = [os.path.join(root, name) for name in splits.values()]
        differing = sorted(train_classes ^ val_classes)
        if differing or os.path.samefile(*split_paths):
            problem = f"class {differing[0]!r}" if differing else "the same folder"
            count = "one split" if differing else "both splits"
            raise InputError(f"{title} has {problem} in {count}")
    if split == "train":  # validation images may lack classes
        check_num_classes(num_classes, len(class_folders), title)
    num_classes = num_classes or len(class_folders)
    if model_names is None:
        model_names = folder_names = [*map(_printable_name, folders_by_label)]
        check_num_classes(num_classes, len(folders_by_label), title)
        if pair := class_names.find_misordered_pair(folder_names):
            order = f"class {pair[0]!r} before {pair[1]!r} as text"
            raise InputError(f"{title} has {order}; pad numbers, or give class_names")
    label_of_name = class_names.labels_by_name(model_names)
    listing = FolderListing([], left_out_paths)
    labels = []
    folder_of_label = {}
    for folder in class_folders:
        folder_name = _printable_name(folder)
        class_name = class_names.canonical_name(folder_name)
        label = label_of_name.get(class_name)
        if label is None:
            count = "two classes" if class_name in label_of_name else "no class"
            raise InputError(
                f"{title} has class {folder_name!r}, the name of {count} of the model; "
                "rename the folder, or load the model with class_names="
            )
        folder_of_label[label] = folder_name
        images = list_images(root, os.path.join(subfolder, folder))
        listing.image_paths.extend(images.image_paths)
        listing.left_out_paths.extend(images.left_out_paths)
        labels += [label] * len(images.image_paths)
    names_by_label = tuple(map(folder_of_label.get, range(num_classes)))
    return _make_source(root, subfolder, listing, labels, num_classes, names_by_label)


def _make_source(root, subfolder, listing, labels, *class_arguments):
    if note := left_out_note(root, listing.left_out_paths):
        log.warning(note)
    source = FileSource(root, listing.image_paths, labels, *class_arguments)
    source.split = subfolder
    return source


def _printable_name(folder):
    """Printable form of a folder name, which may be any bytes."""
    return os.fsencode(folder).decode("utf-8", "replace")


def _list_class_folders(root, subfolder):
    """(names of the class folders in root/subfolder, paths of all other entries)."""
    folder = pathlib.Path(root, subfolder)
    folder_names, image_names, other_names = _list_entries(folder)
    if not folder_names:
        raise NoLabels(f"folder {folder} has no class folders with images")
    other_paths = [os.path.join(subfolder, name) for name in image_names + other_names]
    return folder_names, other_paths
