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
from imagepiece_jax.errors import InputError, inside, one_of

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
    Raises InputError, with the line, for an unreadable table, a label outside the
    classes, a label with two class names, an image in both splits or twice in the test,
    and a training split that lacks a class.
    """
    root = os.path.dirname(path)
    rows = _read_rows(path, split, num_classes, labeled)
    _check_repeated(rows, path)
    _check_labels_of_tests(rows, path)
    names = _class_names(rows, path)
    num_classes = num_classes or max(row.label for row in rows) + 1
    own = [row for row in rows if row.split == split]
    if not labeled and all(row.split == "train" for row in rows):
        images = [os.path.normpath(_stored_file(row, path)) for row in rows]
        files = split_files(root, images, split, path)
        labels = [-1] * len(files)
    else:
        files = [_stored_file(row, path) for row in own]
        labels = [row.label for row in own]
    if not files:
        problem = f"has no row with split {split!r}"
        raise InputError.at(path, problem, hint="each split needs images")
    absent = {*range(num_classes)} - {*labels}
    if absent and split == "train" and labeled:
        problem = f"has no training image with label {min(absent)}"
        hint = f"each of the {num_classes} classes needs some"
        raise InputError.at(path, problem, hint=hint)
    class_names = None
    if names:
        class_names = tuple(map(names.get, range(num_classes)))
    return FileSource(root, files, labels, num_classes, class_names)


def _read_rows(path, split, num_classes, labeled):
    """The rows of both splits, each checked alone; one or more."""
    rows = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, restval="")
            has_split = _has_split(path, split, table)
            for fields in table:
                row_split = fields["split"] if has_split else "val"
                rows.append(_row(table, fields, row_split, num_classes, labeled))
    except InputError as error:  # of a row
        raise error.inside(place=f"{path} line {table.line_num}") from error
    except OSError as error:
        raise InputError.at(path, f"cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError.at(path, f"is not a CSV file in UTF-8 ({error})") from error
    if not rows:
        raise InputError.at(path, "has no rows", "one image or more")
    return rows


def _in_line(path, line):
    """Whose InputErrors say the line of the table."""
    return inside(place=f"{path} line {line}")


def _row(table, fields, split, num_classes, labeled):
    """The _Row of a table's fields {column: text}."""
    if any(fields.get(None, ())):  # a comma at the end is harmless
        problem = f"has more fields than the {len(table.fieldnames)} columns"
        hint = "text with a comma must stand in double quotes"
        raise InputError(problem=problem, hint=hint)
    split = (split or "").strip()
    one_of("split", split, SPLITS)
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
    """InputError for an image that is named before, but for training with its label."""
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
        hint = "a test image must count once"
        if first.split != row.split:
            hint = "an image must not be in both train and val"
        elif not same:
            hint = f"its labels differ, {first.label} and {row.label}"
        problem = f"names {row.image!r} again (line {first.line})"
        with _in_line(path, row.line):
            raise InputError(value=row.image, problem=problem, hint=hint)


def _check_labels_of_tests(rows, path):
    """InputError for test images of which only some have labels."""
    lines = {}  # {whether it has a label: the last line of a test image}
    for row in rows:
        if row.split == "val":
            lines[row.label >= 0] = row.line
    if len(lines) == 2:
        problem = "is empty, but other test images have labels"
        with _in_line(path, lines[False]):
            raise InputError("label", None, "all, or none", problem=problem)


def _class_names(rows, path):
    """{label: class name}; {} for a table without names. InputError for two of one."""
    named = {}  # {label: (name, line)}
    for row in rows:
        if row.class_name is None:
            continue
        name = normalized(row.class_name.strip())
        first, line = named.setdefault(row.label, (name, row.line))
        if name and name == first:
            continue
        with _in_line(path, row.line):
            if not name:
                raise InputError("class", name, "a name in every row")
            problem = f"is {name!r} for label {row.label}"
            problem += f", but {first!r} in line {line}"
            hint = "a label has one name"
            raise InputError("class", name, problem=problem, hint=hint)
    return {label: name for label, (name, _) in named.items()}


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


def _stored_file(row, path):
    """The name of a row's file as it is stored: é may be one character there, or two.

    InputError for none.
    """
    root = os.path.dirname(path)
    name = row.image
    for spelling in (name, normalized(name), unicodedata.normalize("NFD", name)):
        if os.path.isfile(os.path.join(root, spelling)):
            return spelling
    allowed = f"paths relative to the folder of {path}"
    problem = f"is {name!r}, which is not a file"
    with _in_line(path, row.line):
        raise InputError("filename", name, allowed, problem=problem)
