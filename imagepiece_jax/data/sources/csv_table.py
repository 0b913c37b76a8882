"""csv:FILE, a table of image files and labels."""

import csv
import io
import os
import unicodedata
from typing import Any, NamedTuple

from imagepiece_jax.common.checks import check_choice, refuse_any
from imagepiece_jax.common.files import read_text
from imagepiece_jax.data.class_names import composed_name
from imagepiece_jax.data.source import SPLIT_NAMES, FileSource, find_splits
from imagepiece_jax.errors import InputError, NoLabels

COLUMN_NAMES = ("filename", "label", "split", "class")
FORMS = ("NFC", "NFD")  # of Unicode: a table and a disk may write é in two ways


class _TableRow(NamedTuple):
    line_number: int  # in the file
    split: str
    file: str  # relative to the table's folder
    label: Any  # str as read; then int, -1: not used
    class_name: str  # "": no name


def open_csv(
    path: str, split: str, num_classes: int | None = None, labeled: bool = True, *_: Any
) -> FileSource:
    """Open a split of a CSV file, in UTF-8 or Excel's UTF-16.

    Columns are `filename`, relative to the file's folder; `label`, an integer from 0;
    optionally `split`, one of `SPLIT_NAMES`; and optionally `class`, the label's name.
    Without `split` every row is a validation image. Rows of both splits are checked,
    but only this split's files are looked up.

    num_classes: classes of a model, all of which need training images; None: as many as
        the labels of both splits need
    labeled: False: ignore labels, and take all rows if there is no `split`
    """
    rows = _read_rows(path, "val" if labeled else split, labeled)
    splits = find_splits({row.split for row in rows}, path)
    for index, row in enumerate(rows):
        is_used = labeled and row.split in splits.values()
        label = _parse_label(path, row, num_classes) if is_used else -1
        rows[index] = row._replace(label=label)
    _check_repeated_images(rows, path)
    split_rows = [row for row in rows if row.split == splits.get(split)]
    files = [_find_file_name(path, row) for row in split_rows]
    labels = [row.label for row in split_rows]
    absent_labels = {*range(num_classes or 0)} - {*labels} if split == "train" else ()
    if not split_rows or absent_labels:
        lack = f"and label {min(absent_labels)}" if absent_labels else ""
        raise InputError(f"{path} has no row with split {split!r} {lack}")
    num_source_classes = num_classes or 1 + max([row.label for row in rows])
    class_names = None
    if name_of_label := _collect_class_names(rows, path):
        class_names = tuple(map(name_of_label.get, range(num_source_classes)))
    root = os.path.dirname(path)
    source = FileSource(root, files, labels, num_source_classes, class_names)
    source.split = splits[split]
    return source


def _read_rows(path, default_split, labeled):
    """Read all splits' rows, labels as text; no column means `default_split`."""
    rows = []
    table = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="")
    try:
        columns = [column.strip() for column in table.fieldnames or ()]
        table.fieldnames = columns
        # Of two equal columns the last would win silently.
        has_twice = any(columns.count(column) > 1 for column in COLUMN_NAMES)
        sentence = f"the columns are {columns}; one must be 'filename', none twice"
        refuse_any((has_twice or "filename" not in columns, sentence))
        for fields in table:
            # A comma at the end is harmless.
            has_more = any(fields.get(None, ()))
            refuse_any((has_more, "it has more fields than columns; quote commas"))
            row_split = fields.get("split", default_split).strip()
            check_choice("split", row_split, SPLIT_NAMES)
            class_name = composed_name(fields.get("class", "").strip())
            row = (row_split, fields["filename"], fields.get("label"), class_name)
            rows.append(_TableRow(table.line_num, *row))
    except (InputError, csv.Error) as error:
        raise InputError(f"{path} line {table.line_num}: {error}") from error
    if labeled and "label" not in columns:
        raise NoLabels(f"{path} has no column 'label'")
    return rows


def _parse_label(path, row, num_classes):
    text = row.label.strip()
    # Stricter than int(), which also takes 1_0.
    if not text.isdecimal() or (num_classes and int(text) >= num_classes):
        limit = f" below num_classes, {num_classes}" if num_classes else ""
        sentence = f"label is {row.label!r}; it must be a whole number from 0{limit}"
        raise InputError(f"{path} line {row.line_number}: {sentence}")
    return int(text)


def _find_file_name(path, row):
    """A row's file name, in the Unicode form of the file on disk."""
    forms = [row.file, *(unicodedata.normalize(form, row.file) for form in FORMS)]
    for file_name in forms:
        if os.path.isfile(os.path.join(os.path.dirname(path), file_name)):
            return file_name
    sentence = f"filename is {row.file!r}, but there is no such file"
    raise InputError(f"{path} line {row.line_number}: {sentence}")


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


def _collect_class_names(rows, path):
    """{label: class name}; {} for a table without names."""
    name_of_label = {}
    for row in rows:
        class_name = row.class_name
        if row.label < 0:  # the row's split is not used
            continue
        if class_name and name_of_label.setdefault(row.label, class_name) != class_name:
            sentence = f"class is {class_name!r}, not {name_of_label[row.label]!r}"
            raise InputError(f"{path} line {row.line_number}: {sentence}")
    return name_of_label
