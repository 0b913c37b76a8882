"""Folders of images: all files of one by one rule, its splits, and folder:PATH.

folder:PATH has images in PATH/train/CLASS and PATH/val/CLASS, or to test PATH/CLASS.
"""

import logging
import os
import pathlib
from typing import NamedTuple

from imagepiece_jax.data import class_names
from imagepiece_jax.data.decode import EXTENSIONS, SOME_EXTENSIONS, no_image
from imagepiece_jax.data.source import SPLITS, FileSource, check_num_classes
from imagepiece_jax.data.splits import split_files
from imagepiece_jax.errors import InputError

log = logging.getLogger("imagepiece_jax.data")

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

    An image is a file that ends in one of `EXTENSIONS`. Files of a folder come
    in order of their names, and before those of its sub-folders. Hidden files and
    folders are passed over, and a folder that links lead to again is read once.
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
    """Entries of a folder by name, hidden ones left out."""
    with os.scandir(folder) as found:
        shown = [entry for entry in found if not entry.name.startswith(".")]
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
    endings = SOME_EXTENSIONS
    return f"{left} left out; images are files with endings such as {endings}"


def find_splits(folder: str | os.PathLike) -> dict[str, pathlib.Path]:
    """{"train": a folder, "val": a folder}: those of the two that a folder holds."""
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


def open_folder(root, split, num_classes, labeled, names_of_model):
    """The images of a split of folder:ROOT, with arguments of `open_source`."""
    inside = _folders_of_splits(root)
    if not labeled and (split == "train" or not _has_labeled_tests(root, inside)):
        files = _unlabeled_files(root, split, inside)
        return FileSource(root, files, [-1] * len(files), num_classes)
    folders, loose = _class_folders(root, inside[split])
    splits = {inside[split]: folders}
    other = inside[SPLITS[1 - SPLITS.index(split)]]
    if labeled and inside["val"] and os.path.isdir(os.path.join(root, other)):
        splits[other], _ = _class_folders(root, other)
        difference = folders.keys() ^ splits[other].keys()
        if difference:
            raise InputError(
                f"folder {root} has class {min(difference)!r} in only one of train and "
                "val"
            )
    # Names of folders may be any bytes; those of classes are printed.
    names = [os.fsencode(name).decode("utf-8", "replace") for name in folders]
    place = f"folder {root}"
    if split == "train":  # a test may lack classes
        check_num_classes(num_classes, len(names), place)
    num_classes = num_classes or len(names)
    by_label = _labels(place, names, num_classes, names_of_model)
    names = tuple(map(by_label.get, range(num_classes)))
    owners = _owners(root, splits)
    files = []
    labels = []
    left_out = loose
    for label, name in zip(by_label, folders.values(), strict=True):
        found = list_images(root, os.path.join(inside[split], name))
        _check_links(root, found.folders, owners)
        if not found.images:
            raise no_image(os.path.join(root, inside[split], name))
        files += found.images
        labels += [label] * len(found.images)
        left_out += found.left_out
    _log_left_out(root, left_out)
    return FileSource(root, files, labels, num_classes, names)


def _folders_of_splits(root):
    """{split: name of its folder in root}.

    A split without a folder gets the name that an error will ask for: train, val. Where
    root has neither, it holds classes of test images itself, and val is "".
    """
    found = find_splits(root)
    names = {split: path.name for split, path in found.items()}
    val_name = "val" if found else ""
    return {"train": "train", "val": val_name, **names}


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


def _class_folders(root, inside):
    """({class: name of its folder}, paths of what is no folder) of root/inside.

    Classes are sorted. Their names are normalized: some systems spell é as e and an
    accent, and one of both splits may come from there.
    """
    folder = pathlib.Path(root, inside)
    folders = {}
    loose = []
    for entry in entries(folder):
        if not leads_to(entry.is_dir):
            loose.append(os.path.join(inside, entry.name))
            continue
        name = class_names.normalized(entry.name)
        if name in folders:
            raise InputError(
                f"folder {folder} has class {name!r} twice, in two spellings of Unicode"
            )
        folders[name] = entry.name
    if not folders:
        raise InputError(
            f"folder {folder} has no folders of classes, each with its images"
        )
    return dict(sorted(folders.items())), loose


def _owners(root, splits):
    """{real path: folder of a class} of all classes, each of which must be another.

    splits: {name of a split's folder: {class: name of its folder}}
    """
    owners = {}
    for inside, folders in sorted(splits.items()):
        for name in folders.values():
            folder = os.path.join(inside, name)
            real = os.path.realpath(os.path.join(root, folder))
            if real in owners:
                raise _same_folder(root, folder, owners[real])
            owners[real] = folder
    return owners


def _check_links(root, folders, owners):
    """Refuse a link that leads from a class to images of another.

    folders: {real path: folder} of the class, its own first, and of all folders in it
    owners: {real path: folder of a class}, to which those of this class are added
    """
    owner = next(iter(folders.values()))
    for real, folder in folders.items():
        for place in (real, *map(str, pathlib.PurePath(real).parents)):
            if owners.get(place, owner) != owner:
                raise _same_folder(root, folder, owners[place])
        owners[real] = owner


def _same_folder(root, folder, first):
    """The error for a class's folder that is another class's, too."""
    return InputError(
        f"folder {os.path.join(root, folder)} is the same as "
        f"{os.path.join(root, first)}, or in it, by a link"
    )


def _has_labeled_tests(root, inside):
    """Whether val's folder has folders, classes then, and no images beside.

    inside: of `_folders_of_splits`
    """
    folder = os.path.join(root, inside["val"])
    if not os.path.isdir(folder):
        return False
    found = entries(folder)
    loose = [entry for entry in found if entry.name.lower().endswith(EXTENSIONS)]
    return bool(found) and not loose


def _unlabeled_files(root, split, inside):
    """All images in the folder of a split, by name, relative to `root`.

    Without root/val, test images are a part of those in root/train.

    inside: of `_folders_of_splits`
    """
    train = inside["train"]
    tested = os.path.join(root, inside["val"])
    separate = os.path.isdir(tested)
    read = inside[split] if separate else train
    found = list_images(root, read)
    tested_on = os.path.realpath(tested)
    for real, folder in found.folders.items():
        if read == train and os.path.commonpath((real, tested_on)) == tested_on:
            raise InputError(
                f"folder {os.path.join(root, folder)} is a part of {tested}, by a link"
            )
    if not found.images:
        raise no_image(os.path.join(root, read))
    _log_left_out(root, found.left_out)
    if separate:
        return found.images
    return split_files(root, found.images, split, f"folder {root}")


def _log_left_out(root, left_out):
    """Warn of files that are no images."""
    note = left_out_note(root, left_out)
    if note:
        log.warning(note)
