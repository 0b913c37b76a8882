"""csv:FILE, a table of image files and labels."""

import csv
import os
import re
from typing import NamedTuple

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.data.source import SPLITS, FileSource
from imagepiece_jax.errors import InputError

NEEDED = ("filename", "label")
COLUMNS = (*NEEDED, "split", "class")


class _Row(NamedTuple):
    """A row of the table."""

    line: int  # its number in the file
    split: str
    file: str  # relative to the table's folder
    label: int
    class_name: str  # "": it has none


def open_csv(path: str, split: str, num_classes: int | None = None) -> FileSource:
    """The images of one split of a CSV file in UTF-8.

    Its columns are `filename`, relative to the file's folder; `label`, a whole number
    from 0; optionally `split`, train or val; and optionally `class`, the name of the
    label's class. Without `split` every row is a test image, and nothing can be trained
    on. The rows of both splits are checked, files of the other split are not looked up.

    split: "train" or "val"
    num_classes: of a model, each of which needs training images; None is as many as
        the labels of both splits need
    """
    root = os.path.dirname(path)
    rows = _read_rows(path, num_classes)
    _check_repeated(rows, path)
    names = _class_names(rows, path)
    own = [row for row in rows if row.split == split]
    if not own:
        raise InputError(f"{path} has no row with split {split!r}")
    for row in own:
        if not os.path.isfile(os.path.join(root, row.file)):
            raise InputError(
                f"{path} line {row.line}: filename is {row.file!r}, which is not a "
                "file in the folder of the table"
            )
    labels = [row.label for row in own]
    absent = {*range(num_classes or 0)} - {*labels}
    if absent and split == "train":
        raise InputError(
            f"{path} has no training image with label {min(absent)}; each of the "
            f"{num_classes} classes needs some"
        )
    num_classes = num_classes or 1 + max([row.label for row in rows])
    class_names = None
    if names:
        class_names = tuple(map(names.get, range(num_classes)))
    files = [row.file for row in own]
    return FileSource(root, files, labels, num_classes, class_names)


def _read_rows(path, num_classes):
    """The rows of both splits, each checked alone."""
    rows = []
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file, restval="")
        # Blanks around the names of columns are removed.
        try:
            table.fieldnames = [name.strip() for name in table.fieldnames or ()]
            for name in COLUMNS:  # the last of two would decide, silently
                if table.fieldnames.count(name) > 1:
                    raise InputError(f"there is more than one column {name!r}")
            if missing := {*NEEDED} - {*table.fieldnames}:
                raise InputError(f"there is no column {min(missing)!r}")
            for fields in table:
                rows.append(_row(table.line_num, fields, num_classes))
        except (InputError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path} line {table.line_num}: {error}") from error
    return rows


def _row(line, fields, num_classes):
    """The _Row of a table's fields {column: text}."""
    if any(fields.get(None, ())):  # a comma at the end is harmless
        raise InputError("it has more fields than columns; quote text with a comma")
    split = fields.get("split", "val").strip()
    check_choice("split", split, SPLITS)
    label = _label(fields["label"], num_classes)
    return _Row(line, split, fields["filename"], label, fields.get("class", "").strip())


def _label(text, num_classes):
    """The label in a row, one of the classes."""
    label = -1
    # Stricter than int(), which also takes 1_0 and digits of other scripts.
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", text):
        label = int(text)
    if label < 0 or (num_classes and label >= num_classes):
        of = f" below num_classes, {num_classes}" if num_classes else ""
        raise InputError(f"label is {text!r}; it must be a whole number from 0{of}")
    return label


def _check_repeated(rows, path):
    """Refuse an image that is named before, but for training with its label."""
    first_rows = {}  # of each file
    for row in rows:
        first = first_rows.setdefault(os.path.normpath(row.file), row)
        same = first.label == row.label
        if first is row or (first.split == row.split == "train" and same):
            continue
        why = "a test image must count once"
        if first.split != row.split:
            why = "an image must not be in both train and val"
        elif not same:
            why = f"its labels differ, {first.label} and {row.label}"
        raise InputError(
            f"{path} line {row.line} names {row.file!r} again (line {first.line}); "
            f"{why}"
        )


def _class_names(rows, path):
    """{label: class name}; {} for a table without names."""
    names = {}
    for row in rows:
        name = row.class_name
        if name and names.setdefault(row.label, name) != name:
            raise InputError(
                f"{path} line {row.line}: class is {name!r} for label {row.label}, "
                f"which has the name {names[row.label]!r} already"
            )
    return names
