"""folder:PATH, images in PATH/train/CLASS and PATH/val/CLASS, or to test PATH/CLASS."""

import logging
import os
import pathlib
from collections.abc import Mapping

from imagepiece_jax.data import class_names, image_files
from imagepiece_jax.data.decode import EXTENSIONS, no_image
from imagepiece_jax.data.source import SPLITS, FileSource, check_num_classes
from imagepiece_jax.data.splits import split_files
from imagepiece_jax.errors import InputError

log = logging.getLogger("imagepiece_jax.data")


def open_folder(root, split, num_classes, labeled, labels_by_name):
    """The images of a split of folder:ROOT, with arguments of `open_source`."""
    inside = _folders_of_splits(root)
    if not labeled and not _has_labeled_tests(root, inside):
        files = _unlabeled_files(root, split, inside)
        return FileSource(root, files, [-1] * len(files), num_classes)
    # Training images without labels may be anywhere; then val has the classes.
    split_with_classes = split if labeled else "val"
    folders, loose = _class_folders(root, inside[split_with_classes])
    splits = {inside[split]: folders}
    other = inside[SPLITS[1 - SPLITS.index(split)]]
    if labeled and inside["val"] and os.path.isdir(os.path.join(root, other)):
        splits[other], _ = _class_folders(root, other)
        difference = folders.keys() ^ splits[other].keys()
        if difference:
            raise InputError(
                f"has class {min(difference)!r} in only one of train and val",
                place=f"folder {root}",
                allowed="the same classes in both",
            )
    # Names of folders may be any bytes; those of classes are printed.
    names = [os.fsencode(name).decode("utf-8", "replace") for name in folders]
    place = f"folder {root}"
    if split == "train" or labels_by_name is None:  # others may lack classes
        check_num_classes(num_classes, len(names), place)
    num_classes = num_classes or len(names)
    class_labels = _labels(place, names, num_classes, labels_by_name)
    by_label = dict(zip(class_labels, names, strict=True))
    names = tuple(map(by_label.get, range(num_classes)))
    if split == "train" and not labeled:
        files = _unlabeled_files(root, "train", inside)
        return FileSource(root, files, [-1] * len(files), num_classes, names)
    owners = _owners(root, splits)
    files = []
    labels = []
    left_out = loose
    for label, name in zip(class_labels, folders.values(), strict=True):
        found = image_files.list_images(root, os.path.join(inside[split], name))
        _check_links(root, found.folders, owners)
        if not found.images:
            raise no_image(os.path.join(root, inside[split], name))
        files += found.images
        labels += [label] * len(found.images)
        left_out += found.left_out
    _log_left_out(root, left_out)
    return FileSource(root, files, labels, num_classes, names)


def _folders_of_splits(root):
    """{split: name of its folder in root}; that of a missing one is as errors ask for.

    Without either, root has the classes of test images, and val's name is "".
    """
    found = image_files.find_splits(root)
    names = {split: path.name for split, path in found.items()}
    tests = "val" if found else ""
    return {"train": "train", "val": tests, **names}


def _labels(place, names, num_classes, labels_by_name: Mapping[str, int] | None):
    """The label of each class: by its name, or its number, else by their order.

    place: the folder, for errors
    labels_by_name: of a model's classes, {} where they have no names; None: there is no
        model that the labels have to agree with
    """
    known = labels_by_name or {}
    labels = [known.get(name) for name in names]
    if None not in labels and len({*labels}) == len(labels):
        return labels
    numbers = [class_names.number(name) for name in names]
    are_numbers = all(n is not None and n < num_classes for n in numbers)
    model_has_numbers = any(class_names.number(name) is not None for name in known)
    if are_numbers and not model_has_numbers:
        return _distinct(place, numbers, names)
    unknown = [name for name in names if name not in known]
    if num_classes != len(names) and 0 < len(unknown) < len(names):
        raise InputError(
            f"has class {unknown[0]!r}, which is not one of the model's "
            f"{num_classes}, as {len(names) - len(unknown)} others are",
            place=place,
            allowed="names of its classes, or a folder for each",
        )
    if labels_by_name is not None and num_classes != len(names):
        raise InputError(
            f"has {len(names)} classes, none of which is named as one of the "
            f"model's {num_classes}",
            place=place,
            allowed=(
                "folders with names of its classes, with whole numbers from 0 to "
                f"{num_classes - 1} as labels, or one for each class"
            ),
        )
    check_num_classes(num_classes, len(names), place)
    for label, name in enumerate(names):
        if known.get(name, label) != label:
            raise InputError(
                f"has class {name!r}, which is class {known[name]} of the model "
                f"and {label} by the order of all, of which it lacks {unknown[0]!r}",
                place=place,
                allowed="names of the model's classes",
            )
    two_orders = class_names.two_orders(names)
    if labels_by_name is not None and two_orders:
        label, text, number = two_orders
        raise InputError(
            "has classes that sort in one order as text and in another as numbers, and "
            f"the model's class names do not say whether class {label} is {text!r} or "
            f"{number!r}",
            place=place,
            allowed=(
                "names of the model's classes, whole numbers from 0 to "
                f"{num_classes - 1} as labels, or numbers of equal length, such as 02 "
                "and 10"
            ),
        )
    return [*range(len(names))]


def _distinct(place, numbers, names):
    """The numbers of classes as labels; InputError where two are one."""
    first = {}
    for number, name in zip(numbers, names, strict=True):
        if number in first:
            raise InputError(
                f"has class {number} twice, as {first[number]!r} and {name!r}",
                place=place,
                allowed="one folder for each class",
            )
        first[number] = name
    return numbers


def _class_folders(root, inside):
    """({class: name of its folder}, paths of what is no folder) of root/inside.

    Classes are sorted. Their names are normalized: some systems spell é as e and an
    accent, and one of both splits may come from there.
    """
    folder = pathlib.Path(root, inside)
    try:
        entries = image_files.entries(folder)
    except InputError as error:
        hint = (
            "folder:PATH needs PATH/train and PATH/val with one folder of images for "
            "each class, or to test PATH with these folders alone"
        )
        raise error.inside(hint=hint) from error
    folders = {}
    loose = []
    for entry in entries:
        if not image_files.leads_to(entry.is_dir):
            loose.append(os.path.join(inside, entry.name))
            continue
        name = class_names.normalized(entry.name)
        if name in folders:
            raise InputError(
                f"has class {name!r} twice, in two spellings of Unicode",
                place=f"folder {folder}",
                allowed="one folder for each class",
            )
        folders[name] = entry.name
    if not folders:
        raise InputError(
            "has no folders of classes" if loose else "is empty",
            place=f"folder {folder}",
            allowed="one folder of images for each class, or csv:FILE with labels",
        )
    return dict(sorted(folders.items())), loose


def _owners(root, splits):
    """{real path: folder of a class} of all classes; InputError where two are one.

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
    """InputError where a link leads from a class to images of another.

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
    """The InputError for a class's folder that is another class's, too."""
    return InputError(
        f"is the same as {os.path.join(root, first)}, or in it, by a link",
        place=f"folder {os.path.join(root, folder)}",
        hint="each class needs images of its own, in train and in val",
    )


def _has_labeled_tests(root, inside):
    """Whether val's folder has folders, classes then, and no images beside.

    inside: of `_folders_of_splits`
    """
    folder = os.path.join(root, inside["val"])
    if not os.path.isdir(folder):
        return False
    entries = image_files.entries(folder)
    loose = [entry for entry in entries if entry.name.lower().endswith(EXTENSIONS)]
    return bool(entries) and not loose


def _unlabeled_files(root, split, inside):
    """All images in the folder of a split, by name, relative to `root`.

    Without root/val, test images are a part of those in root/train.

    inside: of `_folders_of_splits`
    InputError where there are none, and where a folder of root/train is root/val or in
    it, by a link.
    """
    train = inside["train"]
    tested = os.path.join(root, inside["val"])
    separate = os.path.isdir(tested)
    read = inside[split] if separate else train
    found = image_files.list_images(root, read)
    tested_on = os.path.realpath(tested)
    for real, folder in found.folders.items():
        if read == train and os.path.commonpath((real, tested_on)) == tested_on:
            raise InputError(
                f"is a part of {tested}, by a link",
                place=f"folder {os.path.join(root, folder)}",
                hint="training needs its own",
            )
    if not found.images:
        raise no_image(os.path.join(root, read))
    _log_left_out(root, found.left_out)
    if separate:
        return found.images
    return split_files(root, found.images, split, f"folder {root}")


def _log_left_out(root, left_out):
    """Warn of files that are no images."""
    note = image_files.left_out_note(root, left_out)
    if note:
        log.warning(note)
