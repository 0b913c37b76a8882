"""folder:PATH, images in PATH/train/CLASS and PATH/val/CLASS."""

import logging
import os

from imagepiece_jax.data.decode import EXTENSIONS, no_image
from imagepiece_jax.data.source import SPLITS, FileSource, check_num_classes
from imagepiece_jax.errors import InputError

log = logging.getLogger("imagepiece_jax.data")


def open_folder(root, split, num_classes, labeled, labels_by_name):
    classes = _class_names(root, split if labeled else "val")
    other = SPLITS[1 - SPLITS.index(split)]
    if labeled and os.path.isdir(os.path.join(root, other)):
        difference = set(classes) ^ set(_class_names(root, other))
        if difference:
            problem = f"has class {min(difference)!r} in only one of train and val"
            allowed = "the same classes in both"
            raise InputError(problem, place=f"folder {root}", allowed=allowed)
        _check_apart(root, classes)
    # Names of folders may be any bytes; those of classes are printed.
    names = [os.fsencode(name).decode("utf-8", "replace") for name in classes]
    class_labels = _labels(root, names, num_classes, labels_by_name or {})
    num_classes = num_classes or len(classes)
    by_label = dict(zip(class_labels, names, strict=True))
    names = tuple(map(by_label.get, range(num_classes)))
    if split == "train" and not labeled:
        files = _unlabeled_files(root)
        return FileSource(root, files, [-1] * len(files), num_classes, names)
    files, labels, ignored = [], [], []
    for label, name in zip(class_labels, classes, strict=True):
        folder = os.path.join(root, split, name)
        images = []
        for entry in _entries(folder):
            image = entry.name.lower().endswith(EXTENSIONS) and _leads_to(entry.is_file)
            (images if image else ignored).append(entry.name if image else entry.path)
        if not images:
            raise no_image(folder)
        files += [os.path.join(split, name, file) for file in images]
        labels += [label] * len(images)
    if ignored:
        text = "%s: %d entries are left out, the first is %s: images are files that end"
        found = os.path.join(root, split), len(ignored), ignored[0]
        log.warning(text + " in %s", *found, ", ".join(EXTENSIONS))
    return FileSource(root, files, labels, num_classes, names)


def _labels(root, names, num_classes, labels_by_name):
    """The label of each folder: by its name, if all have one, else by their order."""
    labels = [labels_by_name.get(name) for name in names]
    if None not in labels and len({*labels}) == len(labels) > 0:
        return labels
    unknown = [n for n, label in zip(names, labels, strict=True) if label is None]
    if num_classes not in (None, len(names)) and 0 < len(unknown) < len(names):
        problem = f"has class {unknown[0]!r}, which is not one of the model's "
        problem += f"{num_classes}, as {len(names) - len(unknown)} others are"
        allowed = "names of its classes, or a folder for each"
        raise InputError(problem, place=f"folder {root}", allowed=allowed)
    check_num_classes(num_classes, len(names), f"folder {root}")
    return [*range(len(names))]


def _class_names(root, split):
    folder = os.path.join(root, split)
    names = [entry.name for entry in _entries(folder) if _leads_to(entry.is_dir)]
    if not names:
        allowed = "one folder of images for each class"
        raise InputError("is empty", place=f"folder {folder}", allowed=allowed)
    return names


def _check_apart(root, classes):
    """InputError where two of all folders of images are one, by a symbolic link."""
    seen = {}
    for split in SPLITS:
        for name in classes:
            folder = os.path.join(root, split, name)
            first = seen.setdefault(os.path.realpath(folder), folder)
            if first != folder:
                problem = f"is the same as {first}, by a link"
                hint = "each class needs images of its own, in train and in val"
                raise InputError(problem, place=f"folder {folder}", hint=hint)


def _entries(folder):
    """Entries of a folder sorted by name, hidden ones left out."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        problem, place = f"cannot be read ({error.strerror})", f"folder {folder}"
        hint = "folder:PATH needs PATH/train and PATH/val with one folder of images "
        hint += "for each class"
        raise InputError(problem, place=place, hint=hint) from error
    return sorted(found, key=lambda entry: entry.name)


def _leads_to(kind):
    """`kind()`, an entry's is_file or is_dir; False for links that lead nowhere."""
    try:
        return kind()
    except OSError:  # a loop of links, or a target in a folder that cannot be read
        return False


def _unlabeled_files(root):
    """All images in the folder root/train, by name, relative to `root`.

    InputError where there are none, and where a folder is root/val or in it, by a link.
    """
    folder, tested = (os.path.join(root, split) for split in SPLITS)
    tested_on, seen, files = os.path.realpath(tested), set(), []
    for path, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()  # a link to what has been read
            continue
        seen.add(real)
        if os.path.commonpath((real, tested_on)) == tested_on:
            problem, place = f"is a part of {tested}, by a link", f"folder {path}"
            raise InputError(problem, place=place, hint="training needs its own")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [
            os.path.relpath(os.path.join(path, name), root)
            for name in sorted(names)
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    if not files:
        raise no_image(folder)
    return files
