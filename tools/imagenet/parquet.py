"""Parquet files of the Hugging Face hub: rows of an encoded image and its label.

An image lies in pages that are compressed, together with its neighbors: it cannot be
read where it is, as that of a tar can. `unpack` copies the images once into a file in
which they lie one after the other, a row group at a time.
"""

import importlib.util
import json
import os
import pathlib

from imagepiece_jax.common.files import replace_file, replacing
from imagepiece_jax.errors import InputError

ROWS = 32  # of 110 KB, that are taken from a row group at a time
BUFFER = 2**20  # bytes of a file that are read at a time
COLUMNS = "image, with the bytes of encoded images or a struct that has them, and label"
FETCH = "fetch this file again"


def check_installed():
    """Raises InputError where pyarrow is missing."""
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            "--source has parquet files, which need pyarrow; pip install pyarrow"
        )


def count(path):
    """(images of a file, their size in bytes, a little more for headers of pages)."""
    with _opened(path) as file:
        _image_columns(path, file)
        size = 0
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            for column in range(group.num_columns):
                chunk = group.column(column)
                if chunk.path_in_schema in ("image", "image.bytes"):
                    size += chunk.total_uncompressed_size
        return file.metadata.num_rows, size


def class_names(path):
    """Names of the labels as `datasets` notes them in a file; None without."""
    with _opened(path) as file:
        note = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        return json.loads(note)["info"]["features"]["label"]["names"]
    except (ValueError, KeyError, TypeError):
        return None


def is_unpacked(path, target):
    """Whether `unpack` has copied the images of this very file."""
    return _unpacked_rows(path, target) is not None


def _unpacked_rows(path, target):
    """What `unpack` returned, where it has copied this very file; else None."""
    index = _index(target)
    if not index.exists() or not os.path.exists(target):
        return None
    note = json.loads(index.read_text("utf-8"))
    return note["rows"] if note["of"] == _stamp(path) else None


def unpack(path, target):
    """Copy the images of a file one after the other into the file `target`.

    Their bytes stay as they are. What `is_unpacked` is not copied again: a list of the
    images is written last, beside `target`.

    Returns a row [file name or None, label, size in bytes] for each image.
    Raises InputError for a file that is damaged or has other columns, RunError where
    `target` cannot be written.
    """
    rows = _unpacked_rows(path, target)
    if rows is not None:
        return rows
    rows = []
    stamp = _stamp(path)
    with replacing(target) as new, open(new, "wb") as file:
        for image, name, label in read_rows(path):
            file.write(image)
            rows.append([name, label, len(image)])
    replace_file(_index(target), json.dumps({"of": stamp, "rows": rows}))
    return rows


def _index(target):
    return pathlib.Path(f"{target}.json")


def _stamp(path):
    """What changes when a file is fetched again."""
    about = os.stat(path)
    return [about.st_size, about.st_mtime_ns]


def read_rows(path):
    """Yields (encoded image, file name or None, label) of each row; see `unpack`."""
    with _opened(path) as file:
        columns = _image_columns(path, file)
        number = 0
        try:
            for batch in file.iter_batches(ROWS, columns=[*columns, "label"]):
                for row in batch.to_pylist():
                    yield _row(path, number, row)
                    number += 1
        except InputError:
            raise
        except (OSError, ValueError) as error:  # pyarrow's are of both kinds
            raise _damaged(path, error, f" behind row {number:,}") from error
    if number != file.metadata.num_rows:
        raise _damaged(path, f"{number:,} of {file.metadata.num_rows:,} rows")


def _row(path, number, row):
    """(encoded image, file name or None, label) of a row as pyarrow gives it."""
    image = row["image"]
    label = row["label"]
    name = None
    if isinstance(image, dict):
        name = image.get("path")
        image = image["bytes"]
    if image is None:
        raise InputError(
            f"{path}: image of row {number:,} has no bytes"
            "; images must be in the file, as push_to_hub of `datasets` puts them"
        )
    if label is None:
        raise InputError(f"{path}: label of row {number:,} is empty")
    return image, name, label


def _opened(path):
    """The open file; InputError where its footer cannot be read."""
    import pyarrow
    from pyarrow import parquet

    options = {"buffer_size": BUFFER, "pre_buffer": False}
    try:
        return parquet.ParquetFile(path, page_checksum_verification=True, **options)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _image_columns(path, file):
    """Columns of an open file to read for images. InputError for other columns."""
    import pyarrow
    from pyarrow import types

    schema = file.schema_arrow
    kinds = {field.name: field.type for field in schema}
    image = kinds.get("image")
    label = kinds.get("label")
    columns = ["image"]
    if image is not None and types.is_struct(image):
        fields = {field.name: field.type for field in image}
        columns = [f"image.{name}" for name in ("bytes", "path") if name in fields]
        image = fields.get("bytes")
    binary = image is not None and (
        types.is_binary(image) or types.is_large_binary(image)
    )
    if not binary or label is None or not pyarrow.types.is_integer(label):
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise InputError(
            f"{path} has the columns {found}; allowed: {COLUMNS}, a whole number"
        )
    return columns


def _damaged(path, error, where=""):
    """The InputError for an error of pyarrow's, or of the system."""
    if isinstance(error, OSError) and error.errno:
        return InputError(f"{path} cannot be read ({error.strerror})")
    reason = " ".join(str(error).split())
    problem = f"is a damaged parquet file{where} ({reason})"
    return InputError(f"{path} {problem}; {FETCH}")
