"""A folder with features of many photographs, which a killed process leaves whole.

pooled.npy      [photographs, D], a row for each line of paths.txt
logits.npy      [photographs, classes], and patches.npy [photographs, h, w, D] on
                request
paths.txt       the paths of the photographs, one a line
damaged.csv     row, path and reason of each that has no features: its row is NaN
info.json       what the rows were computed by, and their comparison with those of the
                dense model; it is there before all other files

Rows are appended to files whose names end in UNFINISHED. How long these are says how
many rows are there, and with the last row they get their names.
"""

import csv
import hashlib
import io
import math
import mmap
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from imagepiece_jax.common import files
from imagepiece_jax.common.version import __version__
from imagepiece_jax.errors import InputError, RunError

ARRAYS = ("pooled", "logits", "patches")
INFO = "info.json"
PATHS = "paths.txt"
DAMAGED = "damaged.csv"
COLUMNS = ("row", "path", "reason")  # of damaged.csv
UNFINISHED = ".unfinished"
KEY = "imagepiece_jax"  # in info.json: the version that started the folder


class FeatureFolder:
    """The files of a folder, which no other process writes until it is closed.

    info: the content of info.json; of a new folder only KEY
    Raises InputError for a folder that holds anything else, and for one in use.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        check_folder(self.path)
        self._lock = files.lock_folder("folder", self.path)
        for left in self.path.glob(".*.tmp"):  # by a killed process
            left.unlink()
        self.info = {KEY: __version__}
        if (self.path / INFO).exists():
            self.info = files.read_json(self.path / INFO)
        else:
            self.write_info()  # by which the files after it are known

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._lock)

    def write_info(self, **facts: Any):
        """Add facts to info.json."""
        self.info |= facts
        files.write_json(self.path / INFO, self.info)

    def write_paths(self, images: Iterable[str]) -> dict[str, Any]:
        """Write paths.txt; {"count": its lines, "digest": of its content}.

        Raises InputError for other paths than the folder was started with, and for one
        with a line break.
        """
        digest = hashlib.sha256()
        count = 0
        with files.replacing(self.path / PATHS) as new, open(new, "wb") as file:
            for image in images:
                if "\n" in image:
                    raise InputError.at(
                        repr(image), "has a line break in its name", hint="rename it"
                    )
                line = os.fsencode(image) + b"\n"
                digest.update(line)
                file.write(line)
                count += 1
            found = {"count": count, "digest": digest.hexdigest()}
            started = self.info.get("images", found)
            if started != found:
                problem = f"has {count} photographs, others than the "
                problem += f"{started['count']} that {self.path} was started with"
                hint = f"{self.path / PATHS} names those"
                raise InputError("images", count, problem=problem, hint=hint)
        return found

    def paths(self) -> "Paths":
        """The lines of paths.txt."""
        return Paths(self.path / PATHS)

    def arrays(self, shapes: Mapping[str, Sequence[int]], dtype) -> "Arrays":
        """The arrays of these shapes.

        Raises InputError for a file of one that is finished, but not such an array.
        """
        return Arrays(self.path, shapes, dtype)


def check_folder(path: pathlib.Path):
    """Raise InputError for a folder that holds anything but features, or nothing.

    Without info.json its files are not of features, whatever their names are.
    """
    started = (path / INFO).exists()
    names = {PATHS, DAMAGED}
    for name in ARRAYS:
        names |= {f"{name}.npy", f"{name}.npy{UNFINISHED}"}

    def ours(file):
        if file.name == INFO:
            return KEY in files.read_json(file)
        return file.name == files.LOCK or (started and file.name in names)

    files.check_own("folder", path, "features", ours)


class Paths:
    """The lines of a file of paths; only the places where they end are in memory."""

    def __init__(self, path: pathlib.Path):
        with open(path, "rb") as file:
            self._ends = np.cumsum(np.fromiter(map(len, file), np.int64))
            self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self):
        return len(self._ends)

    def __getitem__(self, row):
        start = self._ends[row - 1] if row else 0
        return os.fsdecode(self._content[start : self._ends[row] - 1])


class Arrays:
    """The arrays of a folder, whose rows are appended, and the damaged rows."""

    def __init__(self, folder, shapes, dtype):
        self._files = {k: ArrayFile(folder, k, v, dtype) for k, v in shapes.items()}
        self._table = folder / DAMAGED
        self.dtype = np.dtype(dtype)

    @property
    def rows(self) -> int:
        """The number of rows that all arrays have."""
        return min([file.rows for file in self._files.values()])

    @property
    def missing_bytes(self) -> int:
        return sum([file.missing_bytes for file in self._files.values()])

    def cut(self, rows: int):
        """Leave only the first rows."""
        kept = [line for line in self.damaged() if int(line[0]) < rows]
        if kept:
            files.replace_file(self._table, _text([COLUMNS, *kept]))
        else:
            self._table.unlink(missing_ok=True)
        for file in self._files.values():
            file.cut(rows)

    def append(
        self, arrays: Mapping[str, np.ndarray], damaged: Iterable[tuple[int, str, str]]
    ):
        """Append rows to all arrays; damaged: COLUMNS of those among them.

        Raises RunError where they cannot be written; the rows before stay.
        """
        damaged = list(damaged)
        if damaged and not self._table.exists():
            damaged.insert(0, COLUMNS)
        if damaged:  # first: what is behind the last row is cut
            _append(self._table, _text(damaged))
        for name, file in self._files.items():
            file.append(arrays[name])

    def damaged(self) -> list[list[str]]:
        """The rows of damaged.csv, as text; a last one that is cut off is left out."""
        if not self._table.exists():
            return []
        with open(self._table, **ENCODED) as file:
            rows = [*csv.reader(file)]
        return [row for row in rows[1:] if len(row) == len(COLUMNS)]

    def finish(self):
        """Give all arrays their names."""
        for file in self._files.values():
            file.finish()


class ArrayFile:
    """One array, whose file grows row by row.

    Raises InputError where the finished file is another array, or is cut off.
    """

    def __init__(self, folder, name, shape, dtype):
        self._whole = folder / f"{name}.npy"
        self._part = folder / f"{name}.npy{UNFINISHED}"
        self._count = shape[0]
        self._dtype = np.dtype(dtype)
        self._row_bytes = math.prod(shape[1:]) * self._dtype.itemsize
        head = io.BytesIO()
        facts = {"descr": np.lib.format.dtype_to_descr(self._dtype)}
        facts |= {"fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(head, facts)
        self._head = head.getvalue()
        if self._whole.exists():
            self._check_whole(facts)

    def _check_whole(self, facts):
        """Raise InputError where the finished file is no whole array of these facts."""
        with files.reading(self._whole), open(self._whole, "rb") as file:
            try:
                np.lib.format.read_magic(file)
                found = np.lib.format.read_array_header_1_0(file)
            except ValueError:  # no header, or one that is cut off
                found = None
            size = file.tell() + self._count * self._row_bytes
            whole = os.fstat(file.fileno()).st_size == size
        if found != (facts["shape"], False, self._dtype) or not whole:
            shape = " x ".join(map(str, facts["shape"]))
            raise InputError.at(
                self._whole,
                "is damaged, or was changed",
                f"a whole array of {shape} {self._dtype}",
                "remove it, and run the same command again, which writes it anew",
            )

    @property
    def rows(self) -> int:
        """The number of whole rows that are there."""
        if self._whole.exists():
            return self._count
        if not self._part.exists():
            return 0
        size = self._part.stat().st_size - len(self._head)
        return max(0, size // self._row_bytes)

    @property
    def missing_bytes(self) -> int:
        return self._row_bytes * (self._count - self.rows)

    def cut(self, rows: int):
        """Leave only the first rows."""
        if self._whole.exists():
            return
        if not self.rows:
            files.replace_file(self._part, self._head)
        os.truncate(self._part, len(self._head) + rows * self._row_bytes)

    def append(self, values: np.ndarray):
        if not self._whole.exists():
            _append(self._part, values.tobytes())

    def finish(self):
        if not self._whole.exists():
            with open(self._part, "rb") as file:
                os.fsync(file.fileno())
            os.replace(self._part, self._whole)


ENCODED = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


def _text(rows):
    """Rows of a table, as bytes."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(ENCODED["encoding"], ENCODED["errors"])


def _append(path, content):
    """Append bytes to a file. Raises RunError where the disk is full."""
    try:
        with open(path, "ab") as file:
            file.write(content)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror}); fix this, and run the same "
            "command again, which goes on from there"
        ) from error
