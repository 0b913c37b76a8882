"""csv:FILE, a table of image files and labels."""

import csv
import io
import os
from typing import NamedTuple

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.common.files import read_text
from imagepiece_jax.data import source
from imagepiece_jax.data.class_names import composed_name
from imagepiece_jax.errors import InputError, NoLabels, titled_errors

COLUMN_NAMES = ("filename", "label", "split", "class")


class _TableRow(NamedTuple):
    line_number: int  # in the file
    split: str
    file: str  # relative to the table's folder
    label_text: str | None  # None: there is no column "label"
    class_name: str  # "": no name
    label: int = -1  # -1: not used


def open_csv(path: str, request: source.SplitRequest) -> source.FileSource:
    """Open a split of a CSV file, in UTF-8 or Excel's UTF-16.

    Columns are `filename`, relative to the file's folder; `label`, an integer from 0;
    optionally `split`, one of `SPLIT_NAMES`; and optionally `class`, the label's name.
    Without `split` every row is a validation image, or in any split if unlabeled. Rows
    of both splits are checked, but only this split's files are looked up. A model's
    classes all need training images.
    """
    rows = _read_rows(path, "val" if request.labeled else request.split)
    splits = source.find_splits({row.split for row in rows}, path)
    root = os.path.dirname(path)
    name_of_label = {}  # for labels with a name
    for index, row in enumerate(rows):
        label = -1
        with titled_errors(f"{path} line {row.line_number}"):
            if request.labeled and row.split in splits.values():
                label = _parse_label(row.label_text, request.num_classes)
                name = row.class_name
                if name and name_of_label.setdefault(label, name) != name:
                    raise InputError(f"class is {name!r}, not {name_of_label[label]!r}")
            is_wanted = row.split == splits.get(request.split)
            if is_wanted and not os.path.isfile(os.path.join(root, row.file)):
                raise InputError(f"filename is {row.file!r}, but there is no such file")
        rows[index] = row._replace(label=label)
    _check_repeated_images(rows, path)
    split_rows = [row for row in rows if row.split == splits.get(request.split)]
    labels = [row.label for row in split_rows]
    absent_labels = set()
    if request.split == "train":
        absent_labels = {*range(request.num_classes or 0)}.difference(labels)
    if not split_rows or absent_labels:
        absent_text = f"and label {min(absent_labels)}" if absent_labels else ""
        row_text = f"row with split {request.split!r} {absent_text}"
        raise InputError(f"{path} has no {row_text}")
    num_classes = request.num_classes or 1 + max(row.label for row in rows)
    class_names = None
    if name_of_label:
        class_names = tuple(map(name_of_label.get, range(num_classes)))
    files = [row.file for row in split_rows]
    file_source = source.FileSource(root, files, labels, num_classes, class_names)
    file_source.split = splits[request.split]
    return file_source


def _read_rows(path, default_split):
    """Read the rows of all splits; `default_split` if there is no column."""
    rows = []
    table = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="")
    try:
        columns = [column.strip() for column in table.fieldnames or ()]
        table.fieldnames = columns
        # Of two equal columns the last would win silently.
        has_equal_columns = any(columns.count(name) > 1 for name in COLUMN_NAMES)
        if has_equal_columns or "filename" not in columns:
            requirement = "one must be 'filename', none twice"
            raise InputError(f"the columns are {columns}; {requirement}")
        for fields in table:
            # csv keeps surplus fields under None. A comma at the end gives "".
            if any(fields.get(None, ())):
                raise InputError("it has more fields than columns; quote commas")
            split = fields.get("split", default_split).strip()
            check_choice("split", split, source.SPLIT_NAMES)
            class_name = composed_name(fields.get("class", "").strip())
            texts = (split, fields["filename"], fields.get("label"), class_name)
            rows.append(_TableRow(table.line_num, *texts))
    except (InputError, csv.Error) as error:
        raise InputError(f"{path} line {table.line_num}: {error}") from error
    return rows


def _parse_label(label_text, num_classes):
    """A row's label as an integer, below `num_classes` unless that is None."""
    if label_text is None:
        raise NoLabels("there is no column 'label'")
    # Stricter than int(), which also takes 1_0.
    digits = label_text.strip()
    if not digits.isdecimal() or (num_classes and int(digits) >= num_classes):
        requirement = "a whole number from 0"
        requirement += f" below num_classes, {num_classes}" if num_classes else ""
        raise InputError(f"label is {label_text!r}; it must be {requirement}")
    return int(digits)


def _check_repeated_images(rows, path):
    """Refuse a repeated image, except in training with an equal label."""
    first_rows = {}  # {file name: first row}
    for row in rows:
        file_name = composed_name(os.path.normpath(row.file))
        first_row = first_rows.setdefault(file_name, row)
        is_copy = (first_row.split, first_row.label) == (row.split, row.label)
        if first_row is not row and not (is_copy and row.split == "train"):
            raise InputError(
                f"{path} names {row.file!r} in lines {first_row.line_number} and "
                f"{row.line_number}; only training images of one label may repeat"
            )
