"""csv:FILE, a table of image files and labels."""

import csv
import functools
import os
import re
import reprlib
import unicodedata
from typing import NamedTuple

from imagepiece_jax.data.class_names import normalized
from imagepiece_jax.data.source import SPLITS, FileSource
from imagepiece_jax.data.splits import split_files
from imagepiece_jax.errors import InputError, one_of

NEEDED = ("filename", "label")
OPTIONAL = ("split", "class")


class _Row(NamedTuple):
    """A row of the table: the number of its line, its label and its split."""

    line: int
    label: int
    split: str


def open_csv(
    path: str, split: str, num_classes: int | None = None, labeled: bool = True
) -> FileSource:
    """The images of one split of a CSV file in UTF-8.

    Its columns are `filename`, relative to the file's folder; `label`, a whole number
    from 0; optionally `split`, train or val; and optionally `class`, the name of the
    label's class. Without `split` every row is a test image, and nothing can be trained
    on. All rows of both splits are checked, files of the other split are not looked up.

    split: "train" or "val"
    num_classes: None is as many as the labels of both splits need
    labeled: whether training images have labels. If not, their labels are -1, test
        images may have none, too, and without test images a part of the training images
        are test images (`split_files`)
    Raises InputError, with the line, for an unreadable table, a label outside the
    classes, a label with two class names, an image in both splits or twice in the test,
    and a training split that lacks a class.
    """
    files = []
    labels = []
    highest = -1
    test_lines = {}  # {whether it has a label: the last line of a test image}
    training_images = []
    root = os.path.dirname(path)
    names = {}
    first_rows = {}  # of each file
    real = functools.cache(os.path.realpath)  # links are looked up once per folder
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, restval="")
            has_split = _has_split(path, split, table)
            for fields in table:
                if any(fields.get(None, ())):  # a comma at the end is harmless
                    columns = len(table.fieldnames)
                    raise InputError(
                        problem=f"has more fields than the {columns} columns",
                        hint="text with a comma must stand in double quotes",
                    )
                row_split = "val"
                if has_split:
                    row_split = (fields["split"] or "").strip()
                one_of("split", row_split, SPLITS)
                has_label = labeled
                if row_split == "val":
                    has_label = labeled or bool((fields["label"] or "").strip())
                    test_lines[has_label] = table.line_num
                label = -1
                if has_label:
                    label = _label(fields["label"], num_classes)
                row = _Row(table.line_num, label, row_split)
                highest = max(highest, row.label)
                image = fields["filename"] or ""
                if row.split == "train":
                    training_images.append(os.path.normpath(image))
                if row.split == split:
                    files.append(_stored_file(image, path))
                    labels.append(row.label)
                folder, name = os.path.split(os.path.join(root, image))
                key = (normalized(real(folder)), normalized(name))
                first_row = first_rows.setdefault(key, row)
                _check_again(image, row, first_row)
                if has_label and "class" in fields:
                    _add_name(names, row, fields["class"])
    except InputError as error:  # of a row
        raise error.inside(place=f"{path} line {table.line_num}") from error
    except OSError as error:
        raise InputError.at(path, f"cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError.at(path, f"is not a CSV file in UTF-8 ({error})") from error
    if not first_rows:
        raise InputError.at(path, "has no rows", "one image or more")
    if len(test_lines) == 2:
        place = f"{path} line {test_lines[False]}"
        problem = "is empty, but other test images have labels"
        raise InputError("label", None, "all, or none", problem=problem, place=place)
    if not labeled and not test_lines:
        stored = [_stored_file(name, path) for name in training_images]
        files = split_files(root, stored, split, path)
        labels = [-1] * len(files)
    if not files:
        raise InputError.at(
            path, f"has no row with split {split!r}", hint="each split needs images"
        )
    num_classes = num_classes or highest + 1
    absent = {*range(num_classes)} - {*labels}
    if absent and split == "train" and labeled:
        raise InputError.at(
            path,
            f"has no training image with label {min(absent)}",
            hint=f"each of the {num_classes} classes needs some",
        )
    class_names = None
    if names:
        by_label = {label: name for label, (name, _) in names.items()}
        class_names = tuple(map(by_label.get, range(num_classes)))
    return FileSource(root, files, labels, num_classes, class_names)


def _check_again(file, row, first):
    """InputError for a file that was named before and must not be named twice.

    Only a training image may be, with the same label.

    first: the first row that names the file
    """
    if first is row:
        return
    if first.split == row.split == "train" and first.label == row.label:
        return
    if first.split != row.split:
        fault = "an image must not be in both train and val"
    elif first.label != row.label:
        fault = f"its labels differ, {first.label} and {row.label}"
    else:
        fault = "a test image must count once"
    raise InputError(
        value=file, problem=f"names {file!r} again (line {first.line})", hint=fault
    )


def _has_split(path, split, table):
    """Whether the table has a column `split`. InputError for wrong columns.

    Blanks around the names of columns are removed.
    """
    table.fieldnames = [name.strip() for name in table.fieldnames or ()]
    for name in (*NEEDED, *OPTIONAL):
        if table.fieldnames.count(name) > 1:
            raise InputError.at(path, f"has more than one column {name!r}")
    missing = set(NEEDED) - set(table.fieldnames)
    if missing:
        columns = reprlib.repr(table.fieldnames)[1:-1] or "none"
        raise InputError.at(
            path,
            f"has no column {min(missing)!r} (found: {columns})",
            "the columns filename and label, separated by commas",
        )
    has_split = "split" in table.fieldnames
    if split == "train" and not has_split:
        problem = "has no column 'split', so its images can only be tested on"
        hint = "to train, add the column, with train or val in every row"
        raise InputError.at(path, problem, hint=hint)
    return has_split


def _label(text, num_classes):
    """The label in a row. InputError for one that is none of the classes."""
    label = -1
    # Stricter than int(), which also takes 1_0 and digits of other scripts.
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", text or ""):
        label = int(text)
    if label < 0 or (num_classes and label >= num_classes):
        allowed = "the whole numbers from 0"
        if num_classes:
            allowed += f" to {num_classes - 1} (num_classes is {num_classes})"
        raise InputError("label", text, allowed)
    return label


def _stored_file(name, path):
    """The name of a file as it is stored: é may be one character there, or two."""
    root = os.path.dirname(path)
    for spelling in (name, normalized(name), unicodedata.normalize("NFD", name)):
        if os.path.isfile(os.path.join(root, spelling)):
            return spelling
    allowed = f"paths relative to the folder of {path}"
    problem = f"is {name!r}, which is not a file"
    raise InputError("filename", name, allowed, problem=problem)


def _add_name(names, row, text):
    """Add (class name, line) of a label; InputError for one that has another name."""
    name = normalized((text or "").strip())
    if not name:
        raise InputError("class", name, "a name in every row")
    first, line = names.setdefault(row.label, (name, row.line))
    if name != first:
        problem = f"is {name!r} for label {row.label}, but {first!r} in line {line}"
        raise InputError("class", name, problem=problem, hint="a label has one name")
