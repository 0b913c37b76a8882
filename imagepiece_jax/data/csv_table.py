"""csv:FILE, a table of image files and labels."""

import csv
import functools
import os
import re
import unicodedata
from typing import NamedTuple

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.data.class_names import normalized
from imagepiece_jax.data.source import SPLITS, FileSource
from imagepiece_jax.data.splits import split_files
from imagepiece_jax.errors import InputError

NEEDED = ("filename", "label")
OPTIONAL = ("split", "class")


class _Row(NamedTuple):
    """A row of the table."""

    line: int  # its number in the file
    split: str
    image: str  # as the table names its file
    label: int  # -1: it has none
    class_name: str | None  # None: the table has no such column, or the row no label


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
    """
    root = os.path.dirname(path)
    rows = _read_rows(path, num_classes, labeled)
    _check_repeated(rows, path)
    _check_labels_of_tests(rows, path)
    names = _class_names(rows, path)
    num_classes = num_classes or 1 + max([row.label for row in rows], default=0)
    own = [row for row in rows if row.split == split]
    if not labeled and all(row.split == "train" for row in rows):
        images = [os.path.normpath(_stored_file(row, path)) for row in rows]
        files = split_files(root, images, split, path)
        labels = [-1] * len(files)
    else:
        files = [_stored_file(row, path) for row in own]
        labels = [row.label for row in own]
    if not files:
        raise InputError(f"{path} has no row with split {split!r}")
    absent = {*range(num_classes)} - {*labels}
    if absent and split == "train" and labeled:
        raise InputError(
            f"{path} has no training image with label {min(absent)}; each of the "
            f"{num_classes} classes needs some"
        )
    class_names = None
    if names:
        class_names = tuple(map(names.get, range(num_classes)))
    return FileSource(root, files, labels, num_classes, class_names)


def _read_rows(path, num_classes, labeled):
    """The rows of both splits, each checked alone."""
    rows = []
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file, restval="")
        try:
            # Blanks around the names of columns are removed.
            table.fieldnames = [name.strip() for name in table.fieldnames or ()]
            for name in (*NEEDED, *OPTIONAL):
                if table.fieldnames.count(name) > 1:
                    raise InputError(f"there is more than one column {name!r}")
            if missing := {*NEEDED} - {*table.fieldnames}:
                raise InputError(f"there is no column {min(missing)!r}")
            has_split = "split" in table.fieldnames
            for fields in table:
                row_split = fields["split"] if has_split else "val"
                rows.append(_row(table, fields, row_split, num_classes, labeled))
        except (InputError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path} line {table.line_num}: {error}") from error
    return rows


def _row(table, fields, split, num_classes, labeled):
    """The _Row of a table's fields {column: text}."""
    if any(fields.get(None, ())):  # a comma at the end is harmless
        columns = len(table.fieldnames)
        raise InputError(f"it has more than {columns} fields; quote text with a comma")
    split = (split or "").strip()
    check_choice("split", split, SPLITS)
    has_label = labeled
    if split == "val" and (fields["label"] or "").strip():
        has_label = True
    label = -1
    class_name = None
    if has_label:
        label = _label(fields["label"], num_classes)
        class_name = fields.get("class")
    return _Row(table.line_num, split, fields["filename"] or "", label, class_name)


def _check_repeated(rows, path):
    """Refuse an image that is named before, but for training with its label."""
    root = os.path.dirname(path)
    real = functools.cache(os.path.realpath)  # links are looked up once per folder
    first_rows = {}  # of each file
    for row in rows:
        folder, name = os.path.split(os.path.join(root, row.image))
        file = (normalized(real(folder)), normalized(name))
        first = first_rows.setdefault(file, row)
        same = first.label == row.label
        if first is row or (first.split == row.split == "train" and same):
            continue
        why = "a test image must count once"
        if first.split != row.split:
            why = "an image must not be in both train and val"
        elif not same:
            why = f"its labels differ, {first.label} and {row.label}"
        raise InputError(
            f"{path} line {row.line} names {row.image!r} again (line {first.line}); "
            f"{why}"
        )


def _check_labels_of_tests(rows, path):
    """Refuse test images of which only some have labels."""
    lines = {}  # {whether it has a label: the last line of a test image}
    for row in rows:
        if row.split == "val":
            lines[row.label >= 0] = row.line
    if len(lines) == 2:
        raise InputError(
            f"{path} line {lines[False]}: label is empty, but other test images have "
            "labels"
        )


def _class_names(rows, path):
    """{label: class name}; {} for a table without names."""
    named = {}
    for row in rows:
        name = normalized((row.class_name or "").strip())
        if name and named.setdefault(row.label, name) != name:
            raise InputError(
                f"{path} line {row.line}: class is {name!r} for label {row.label}, "
                f"which has the name {named[row.label]!r} already"
            )
    return named


def _label(text, num_classes):
    """The label in a row, one of the classes."""
    label = -1
    # Stricter than int(), which also takes 1_0 and digits of other scripts.
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", text or ""):
        label = int(text)
    if label < 0 or (num_classes and label >= num_classes):
        of = f" below num_classes, {num_classes}" if num_classes else ""
        raise InputError(f"label is {text!r}; it must be a whole number from 0{of}")
    return label


def _stored_file(row, path):
    """The name of a row's file as it is stored: é may be one character, or two."""
    root = os.path.dirname(path)
    name = row.image
    for spelling in (name, normalized(name), unicodedata.normalize("NFD", name)):
        if os.path.isfile(os.path.join(root, spelling)):
            return spelling
    raise InputError(
        f"{path} line {row.line}: filename is {name!r}, which is not a file in the "
        "folder of the table"
    )
