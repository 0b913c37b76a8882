"""Folders of images: listing files, finding splits, opening folder:PATH."""

import collections
import logging
import os
import pathlib
from typing import NamedTuple

from imagepiece_jax.common.files import AnyPath
from imagepiece_jax.common.progress import notes
from imagepiece_jax.data import class_names, source
from imagepiece_jax.data.decode import image_extensions
from imagepiece_jax.errors import InputError, NoLabels

log = logging.getLogger("imagepiece_jax.data")

# Folders that systems and NAS put beside images: their thumbnails would be a class.
SYSTEM_FOLDERS = {"@eadir", "#recycle", "__macosx", "lost+found", "$recycle.bin"}
SYSTEM_FOLDERS |= {"system volume information"}


class FolderListing(NamedTuple):
    """Contents of a folder and its subfolders, as paths relative to a root."""

    image_paths: list[str]
    left_out_paths: list[str]  # all other files, and hidden and system folders


def list_images(root: AnyPath, subfolder: str = "") -> FolderListing:
    """List the images in root/subfolder, and in the folders below it.

    Images have an ending of `image_extensions`. A folder's files come before its
    subfolders, both sorted by name. Hidden files and folders are left out.
    Raises InputError if there are no images.
    """
    listing = FolderListing([], [])
    start_folder = os.path.join(root, subfolder)
    seen_folders = set()
    for folder, folder_names, image_names, other_names in _walk_folders(start_folder):
        real_path = os.path.realpath(folder)
        if real_path in seen_folders:  # links may lead to a folder again, in circles
            folder_names.clear()
            continue
        seen_folders.add(real_path)
        relative_folder = os.path.relpath(folder, root)
        for paths, names in zip(listing, (image_names, other_names), strict=True):
            for name in names:
                paths.append(os.path.normpath(os.path.join(relative_folder, name)))
    if not listing.image_paths:
        note = left_out_note(root, listing.left_out_paths) or "it is empty"
        raise InputError(f"folder {pathlib.Path(start_folder)} holds no images: {note}")
    return listing


def _walk_folders(top):
    """Yield (folder, its folders' names, its images' names, other names), sorted.

    A folder whose name the caller removes is not walked.
    """

    def raise_error(error):  # os.walk itself ignores errors
        raise error

    walk = os.walk(top, onerror=raise_error, followlinks=True)
    for folder, folder_names, file_names in walk:
        all_names = {*folder_names, *file_names}
        # os.walk visits what stays in its list, in this order.
        folder_names[:] = sorted(filter(_is_visible, folder_names))
        image_names = []
        for name in sorted(filter(_is_visible, file_names)):
            if name.lower().endswith(image_extensions()):
                image_names.append(name)
        other_names = sorted(all_names.difference(folder_names, image_names))
        yield folder, folder_names, image_names, other_names


def _is_visible(name):
    return name[0] != "." and name.lower() not in SYSTEM_FOLDERS


def _list_entries(folder):
    """Sorted names in a folder: (folders, images, other names)."""
    return next(_walk_folders(folder))[1:]  # [0] is the folder itself


def left_out_note(root: AnyPath, left_out_paths: list[str]) -> str | None:
    """Note on the paths left out of a folder; None without any."""
    if not left_out_paths:
        return None
    endings = [os.path.splitext(path)[1].lower() for path in left_out_paths]
    counts = collections.Counter(ending or "without ending" for ending in endings)
    counts_text = ", ".join(f"{count} {ending}" for ending, count in counts.items())
    advice = " (pip install pillow-heif)" if {".heic", ".heif"} & {*endings} else ""
    example = os.path.join(root, left_out_paths[0])
    return f"{counts_text} left out{advice}, such as {example}"


def find_split_folders(folder: AnyPath, labeled: bool = False) -> dict[str, str]:
    """Find a folder's splits: {"train" or "val": folder name}; {} for class folders.

    labeled: splits hold class folders, so folders of images are not splits
    """
    folder_names, image_names, _ = _list_entries(folder)
    splits = source.find_splits(folder_names, f"folder {folder}")
    image_folders = set()
    for name in folder_names:
        _, images_inside, _ = _list_entries(os.path.join(folder, name))
        if images_inside:
            image_folders.add(name)
    if labeled and len(image_folders) == len(folder_names):
        return {}
    # Classes may be called train or test, too. Such a folder has images itself or is
    # the only split, and another folder or `folder` itself has images.
    has_images_in_split = not image_folders.isdisjoint(splits.values())
    may_be_classes = has_images_in_split or len(splits) == 1
    has_root_images = bool(image_names) and not labeled
    has_other_folders = bool(image_folders.difference(source.SPLIT_NAMES))
    has_other_images = has_root_images or has_other_folders
    return {} if may_be_classes and has_other_images else splits


def find_folder_images(folder: AnyPath, only_train: bool = False) -> list[str]:
    """Paths of a folder's images; notes name left-out files and the split in use.

    only_train: take the images in train alone, if the folder has splits
    Raises FileNotFoundError for splits without train.
    """
    if only_train and find_split_folders(folder):
        notes.info(f"note: {folder} has splits; the images in train are used")
        folder = os.path.join(folder, "train")
    listing = list_images(folder)
    if note := left_out_note(folder, listing.left_out_paths):
        notes.info(f"note: {note}")
    return [os.path.join(folder, path) for path in listing.image_paths]


def open_class_folders(root: str, request: source.SplitRequest) -> source.FileSource:
    """Open ROOT/train/CLASS or ROOT/val/CLASS; without splits ROOT/CLASS is "val"."""
    title = f"folder {root}"
    splits = find_split_folders(root, request.labeled)
    subfolder = splits.get(request.split, request.split)
    if request.split == "val" and not splits:
        subfolder = ""  # validation images lie in the root itself
    if not request.labeled:
        return _make_source(root, subfolder, list_images(root, subfolder))
    class_folders, left_out_paths = _list_class_folders(root, subfolder)
    folders_by_label = class_folders
    if len(splits) == 2:
        # Validation images get the labels of the training folders.
        folders_by_label, _ = _list_class_folders(root, splits["train"])
        val_folders, _ = _list_class_folders(root, splits["val"])
        train_classes = {*map(class_names.composed_name, folders_by_label)}
        val_classes = {*map(class_names.composed_name, val_folders)}
        if differing_classes := train_classes ^ val_classes:
            raise InputError(
                f"{title} has class {min(differing_classes)!r} in one split"
            )
        if os.path.samefile(*(os.path.join(root, name) for name in splits.values())):
            raise InputError(f"{title} has the same folder in both splits")
    if request.split == "train":  # validation images may lack classes
        source.check_num_classes(request.num_classes, len(class_folders), title)
    num_classes = request.num_classes or len(class_folders)
    names_by_label = request.class_names
    if names_by_label is None:
        names_by_label = [*map(_printable_name, folders_by_label)]
        source.check_num_classes(num_classes, len(folders_by_label), title)
        class_names.check_text_order(names_by_label, title)
    label_of_name = class_names.labels_by_name(names_by_label)
    listing = FolderListing([], left_out_paths)
    labels = []
    folder_name_of_label = {}
    for folder in class_folders:
        folder_name = _printable_name(folder)
        class_name = class_names.canonical_name(folder_name)
        label = label_of_name.get(class_name)
        if label is None:
            owners = "two classes" if class_name in label_of_name else "no class"
            raise InputError(
                f"{title} has class {folder_name!r}, the name of {owners} of the "
                "model; rename the folder, or load the model with class_names="
            )
        folder_name_of_label[label] = folder_name
        class_listing = list_images(root, os.path.join(subfolder, folder))
        listing.image_paths.extend(class_listing.image_paths)
        listing.left_out_paths.extend(class_listing.left_out_paths)
        labels += [label] * len(class_listing.image_paths)
    # None for the model's classes without a folder.
    names_in_data = tuple(map(folder_name_of_label.get, range(num_classes)))
    return _make_source(root, subfolder, listing, labels, num_classes, names_in_data)


def _make_source(root, subfolder, listing, *labels_and_classes):
    if note := left_out_note(root, listing.left_out_paths):
        log.warning(note)
    file_source = source.FileSource(root, listing.image_paths, *labels_and_classes)
    file_source.split = subfolder
    return file_source


def _printable_name(folder):
    """Printable form of a folder name, which may be any bytes."""
    return os.fsencode(folder).decode("utf-8", "replace")


def _list_class_folders(root, subfolder):
    """(names of the class folders in root/subfolder, paths of all other entries)."""
    folder = os.path.join(root, subfolder)
    folder_names, image_names, other_names = _list_entries(folder)
    if not folder_names:
        raise NoLabels(f"folder {folder} has no class folders with images")
    other_paths = [os.path.join(subfolder, name) for name in image_names + other_names]
    return folder_names, other_paths
