"""Images, labels, splits and class names of a CSV file.

Columns: `filename`, relative to the file's folder; `label`, a whole number from 0; and,
where wanted, `split`, train or val, and `class`, the name of the label's class. Without
`split` every row is a test image, and nothing can be trained on.
"""

import csv
import os
from typing import NamedTuple

import numpy as np

from imagepiece_jax.errors import InputError

NEEDED, OPTIONAL = ("filename", "label"), ("split", "class")


class Table(NamedTuple):
    """One split. class_names: a name or None for each class, or None without names."""

    files: list[str]
    labels: list[int]
    num_classes: int
    class_names: tuple[str | None, ...] | None


class _Row(NamedTuple):
    line: int
    file: str
    label: int
    split: str


def read(path, split, num_classes=None):
    """The Table of `split` ("train" or "val") of the CSV file `path`, in UTF-8.

    All rows are checked, of the other split all but the existence of the file.
    `num_classes` None: as many as the labels of both splits need. InputError naming the
    line for what cannot be read, a label outside the classes, a label with two class
    names, an image in both splits or twice in the test, and for a training split that
    lacks a class.
    """
    rows, names = [], {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            has_split = _check_columns(path, split, table)
            for fields in table:
                where = f"{path} line {table.line_num}"
                if None in fields:
                    raise InputError(
                        f"{where} has more fields than the {len(table.fieldnames)} "
                        "columns: text with a comma must stand in double quotes"
                    )
                row = _Row(
                    line=table.line_num,
                    file=fields["filename"],
                    label=_label(fields["label"], num_classes, where),
                    split=_split(fields["split"], where) if has_split else "val",
                )
                if row.split == split:
                    _check_file(row.file, path, where)
                if "class" in fields:
                    _note_name(names, row, fields["class"], where)
                rows.append(row)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file in UTF-8 ({error})") from error
    if not rows:
        raise InputError(f"{path} has no rows: it must name at least one image")
    _check_repeated(path, rows)
    chosen = [row for row in rows if row.split == split]
    if not chosen:
        raise InputError(f"{path} has no row with split {split!r}: each needs some")
    num_classes = num_classes or 1 + max(row.label for row in rows)
    labels = [row.label for row in chosen]
    if split == "train":
        _check_every_class(path, labels, num_classes)
    found = [names.get(label, (None,))[0] for label in range(num_classes)]
    return Table(
        files=[row.file for row in chosen],
        labels=labels,
        num_classes=num_classes,
        class_names=tuple(found) if names else None,
    )


def _check_columns(path, split, table):
    """Whether there is a split; blanks around the names of columns are removed."""
    table.fieldnames = [name.strip() for name in table.fieldnames or ()]
    for name in (*NEEDED, *OPTIONAL):
        if table.fieldnames.count(name) > 1:
            raise InputError(f"{path} has more than one column {name!r}")
    missing = set(NEEDED) - set(table.fieldnames)
    if missing:
        raise InputError(
            f"{path} has no column {min(missing)!r}: it must have the columns filename "
            "and label"
        )
    has_split = "split" in table.fieldnames
    if split == "train" and not has_split:
        raise InputError(
            f"{path} has no column 'split', so its images can only be tested on: to "
            "train, add the column, with train or val in every row"
        )
    return has_split


def _label(text, num_classes, where):
    # Stricter than int(), which also takes 1_0 and digits of other scripts.
    digits = (text or "").strip()
    label = int(digits) if digits.isascii() and digits.isdecimal() else -1
    if label < 0 or (num_classes and label >= num_classes):
        allowed = "0 and more"
        if num_classes:
            allowed = f"0..{num_classes - 1} (config.num_classes is {num_classes})"
        raise InputError(
            f"{where} has label {text!r}: allowed are the whole numbers {allowed}"
        )
    return label


def _split(text, where):
    split = (text or "").strip()
    if split not in ("train", "val"):
        raise InputError(f"{where} has split {text!r}: allowed are train and val")
    return split


def _check_file(name, path, where):
    if not name or not os.path.isfile(os.path.join(os.path.dirname(path), name)):
        raise InputError(
            f"{where} names {name!r}, which is no file: filename must be a path "
            f"relative to {path}"
        )


def _note_name(names, row, text, where):
    """Remember the class name of a label: {label: (name, line)}."""
    name = (text or "").strip()
    if not name:
        raise InputError(f"{where} has no class: the column needs a name in every row")
    known, line = names.setdefault(row.label, (name, row.line))
    if name != known:
        raise InputError(
            f"{where} has class {name!r} for label {row.label}, but line {line} has "
            f"{known!r}: a label has one name"
        )


def _check_repeated(path, rows):
    """InputError for an image that is named again, but as training images may be.

    Training may see an image more often than others, always with the same label.
    """
    folders, seen = {}, {}
    for row in rows:
        folder, name = os.path.split(
            os.path.join(os.path.dirname(path), row.file or "")
        )
        if folder not in folders:  # of few folders, so that no file is asked for twice
            folders[folder] = os.path.realpath(folder)
        first = seen.setdefault((folders[folder], name), row)
        if first is row:
            continue
        if first.split != row.split:
            fault = "an image must not be in both train and val"
        elif first.label != row.label:
            fault = f"its labels differ, {first.label} and {row.label}"
        elif row.split == "val":
            fault = "a test image must count once"
        else:
            continue
        raise InputError(
            f"{path} line {row.line} names {row.file!r} again (line {first.line}): "
            f"{fault}"
        )


def _check_every_class(path, labels, num_classes):
    missing = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    if len(missing):
        raise InputError(
            f"{path} has no training image with label {missing[0]}: allowed are "
            f"training images of each of {num_classes} classes"
        )
