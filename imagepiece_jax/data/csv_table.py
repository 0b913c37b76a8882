"""Images, labels, splits and class names of a CSV file.

Columns: `filename`, relative to the file's folder; `label`, a whole number from 0; and,
where wanted, `split`, train or val, and `class`, the name of the label's class. Without
`split` every row is a test image, and nothing can be trained on.
"""

import csv
import os
import re
from typing import NamedTuple

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
    label: int
    split: str


class _Name(NamedTuple):
    name: str
    line: int


def read(
    path: str, split: str, num_classes: int | None = None, labeled: bool = True
) -> Table:
    """The Table of `split` ("train" or "val") of the CSV file `path`, in UTF-8.

    All rows are checked, of the other split all but the existence of the file.
    `num_classes` None: as many as the labels of both splits need. Not `labeled`:
    training images have the label -1. InputError naming the
    line for what cannot be read, a label outside the classes, a label with two class
    names, an image in both splits or twice in the test, and for a training split that
    lacks a class.
    """
    files, labels, highest = [], [], -1
    repeats, names = _Repeats(os.path.dirname(path)), {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, restval="")
            has_split = _check_columns(path, split, table)
            for fields in table:
                where = f"{path} line {table.line_num}"
                if any(fields.get(None, ())):  # a comma at the end is harmless
                    raise InputError(
                        f"{where} has more fields than the {len(table.fieldnames)} "
                        "columns: text with a comma must stand in double quotes"
                    )
                part = _split(fields["split"], where) if has_split else "val"
                known = labeled or part == "val"
                label = _label(fields["label"], num_classes, where) if known else -1
                row = _Row(table.line_num, label, part)
                highest = max(highest, row.label)
                if row.split == split:
                    _check_file(fields["filename"], path, where)
                    files.append(fields["filename"])
                    labels.append(row.label)
                repeats.check(fields["filename"] or "", row, where)
                if known and "class" in fields:
                    _note_name(names, row, fields["class"], where)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file in UTF-8 ({error})") from error
    if highest < 0:
        raise InputError(f"{path} has no rows: it must name at least one image")
    if not files:
        raise InputError(
            f"{path} has no row with split {split!r}: each split needs images"
        )
    num_classes = num_classes or highest + 1
    if split == "train" and labeled:
        _check_every_class(path, labels, num_classes)
    found = None
    if names:
        found = tuple(names[n].name if n in names else None for n in range(num_classes))
    return Table(files, labels, num_classes, found)


class _Repeats:
    """Find images that are named again, but for training images of one label.

    Training may see an image more often than others.
    """

    def __init__(self, root):
        self._root, self._folders, self._seen = root, {}, {}

    def check(self, file, row, where):
        """InputError where `file` was in an earlier row and may not be in this one."""
        folder, _, name = file.rpartition("/")
        if folder not in self._folders:  # links are looked up once a folder
            path = os.path.join(self._root, file)
            self._folders[folder] = os.path.realpath(os.path.dirname(path))
        first = self._seen.setdefault((self._folders[folder], name), row)
        if first is row or (first[1:] == row[1:] and row.split == "train"):
            return
        if first.split != row.split:
            fault = "an image must not be in both train and val"
        elif first.label != row.label:
            fault = f"its labels differ, {first.label} and {row.label}"
        else:
            fault = "a test image must count once"
        raise InputError(f"{where} names {file!r} again (line {first.line}): {fault}")


def _check_columns(path, split, table):
    """Whether there is a split; blanks around the names of columns are removed."""
    table.fieldnames = [name.strip() for name in table.fieldnames or ()]
    for name in (*NEEDED, *OPTIONAL):
        if table.fieldnames.count(name) > 1:
            raise InputError(f"{path} has more than one column {name!r}")
    missing = set(NEEDED) - set(table.fieldnames)
    if missing:
        found = ", ".join(map(repr, table.fieldnames)) or "none"
        raise InputError(
            f"{path} has no column {min(missing)!r} (found: {found}): it must have the "
            "columns filename and label, separated by commas"
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
    label = int(text) if re.fullmatch(r"\s*[0-9]{1,9}\s*", text or "") else -1
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
    """Remember a label's class name; a label that has another one is an InputError."""
    name = (text or "").strip()
    if not name:
        raise InputError(f"{where} has no class: the column needs a name in every row")
    first = names.setdefault(row.label, _Name(name, row.line))
    if name != first.name:
        raise InputError(
            f"{where} has class {name!r} for label {row.label}, but line {first.line} "
            f"has {first.name!r}: a label has one name"
        )


def _check_every_class(path, labels, num_classes):
    found = set(labels)
    for label in range(num_classes):
        if label not in found:
            raise InputError(
                f"{path} has no training image with label {label}: needed are some of "
                f"each of {num_classes} classes"
            )
