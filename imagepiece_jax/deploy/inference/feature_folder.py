"""A folder with features of many photographs, to which rows are appended.

pooled.npy      [photographs, D], a row for each line of paths.txt
logits.npy      [photographs, classes], and patches.npy [photographs, h, w, D] on
                request
paths.txt       the paths of the photographs, one a line
damaged.csv     row, path and reason of each that has no features: its row is NaN
info.json       what decides the rows, and how many are there

An array's header has the shape of all rows from the start, so NumPy refuses a file that
is not complete. What a killed process wrote beyond the counted rows is cut off.
"""

import contextlib
import csv
import io
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagepiece_jax.common import files
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.record import differences, sentence

ARRAYS = ("pooled", "logits", "patches")
INFO = "info.json"
PATHS = "paths.txt"
DAMAGED = "damaged.csv"
RECORD = "made_by"  # in info.json
INTERVAL = 5.0  # seconds between two counts: a kill loses as much work


class FeatureFolder(contextlib.AbstractContextManager):
    """The files of a folder, which no other process writes meanwhile.

    record: what decides the rows
    paths: of the photographs
    shapes: of the complete arrays, by name
    rows: number of rows that are there
    damaged: (row, path, reason) of those among them that are damaged
    Raises InputError for a folder of other rows, or one that is in use.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        record: Mapping[str, Any],
        paths: Sequence[str],
        shapes: Mapping[str, Sequence[int]],
        dtype: str,
    ):
        self.path = pathlib.Path(path)
        self.dtype = np.dtype(dtype)
        self.rows = 0
        self.damaged = []
        self._record = record
        lines = _lines(paths)
        check_folder(self.path)
        with contextlib.ExitStack() as stack:
            stack.enter_context(files.locked("folder", self.path))
            for left in self.path.glob(".*.tmp"):  # by a killed process
                left.unlink()
            self._resume(shapes)
            self._write_info()
            files.replace_file(self.path / PATHS, lines)
            self._arrays = {}
            for name, shape in shapes.items():
                array = self._open(name, shape)
                self._arrays[name] = stack.enter_context(array)
            self._stack = stack.pop_all()
        self._counted = time.monotonic()

    def __exit__(self, *error):
        with self._stack:
            self.count()

    def _resume(self, shapes):
        """Find the rows that an earlier process counted."""
        if not (self.path / INFO).exists():
            return
        info = files.read_json(self.path / INFO)
        if found := differences(self._record, info[RECORD]):
            problem = sentence(found, f"{self.path} was started with")
            raise InputError(f"{found[0][0]} {problem}; give another folder")
        there = [info["rows"]]
        for name, shape in shapes.items():
            there.append(self._rows_in(name, shape))
        self.rows = min(there)
        if self.rows:
            table = (self.path / DAMAGED).read_bytes().decode(errors="surrogateescape")
            _, *lines = csv.reader(io.StringIO(table, newline=""))
            damaged = [(int(row), *others) for row, *others in lines]
            self.damaged = [each for each in damaged if each[0] < self.rows]

    def _rows_in(self, name, shape):
        """Number of whole rows in the file of an array; 0 of another array."""
        file = self.path / f"{name}.npy"
        header = self._header(shape)
        if not file.exists():
            return 0
        with open(file, "rb") as opened:
            if opened.read(len(header)) != header:
                return 0
        return (file.stat().st_size - len(header)) // self._row_bytes(shape)

    def _header(self, shape):
        """The bytes with which the .npy file of a complete array begins."""
        header = io.BytesIO()
        facts = {"descr": self.dtype.str, "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(header, facts)
        return header.getvalue()

    def _row_bytes(self, shape):
        return int(np.prod(shape[1:])) * self.dtype.itemsize

    def _open(self, name, shape):
        """The file of an array with `rows` rows, open behind them."""
        file = open(self.path / f"{name}.npy", "r+b" if self.rows else "w+b")
        header = self._header(shape)
        file.write(header)
        file.truncate(len(header) + self.rows * self._row_bytes(shape))
        file.seek(0, os.SEEK_END)
        return file

    def append(
        self,
        arrays: Mapping[str, np.ndarray],
        damaged: Sequence[tuple[int, str, str]],
    ):
        """Add the next rows to all arrays; damaged: those among them."""
        for name, file in self._arrays.items():
            file.write(arrays[name].tobytes())
        self.rows += len(arrays["pooled"])
        self.damaged += damaged
        if time.monotonic() > self._counted + INTERVAL:
            self.count()

    def count(self):
        """Write all rows to the disk, and then how many they are."""
        for file in self._arrays.values():
            file.flush()
            with files.where_supported():
                os.fsync(file.fileno())
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerows([("row", "path", "reason"), *self.damaged])
        content = text.getvalue().encode(errors="surrogateescape")
        files.replace_file(self.path / DAMAGED, content)
        self._write_info()
        self._counted = time.monotonic()

    def _write_info(self):
        files.write_json(self.path / INFO, {RECORD: self._record, "rows": self.rows})


def check_folder(path: pathlib.Path):
    """Check that a folder holds features, or nothing.

    Without info.json its files are not of features, whatever their names are.
    """
    started = (path / INFO).exists()
    names = {PATHS, DAMAGED, *[f"{name}.npy" for name in ARRAYS]}

    def ours(file):
        if file.name == INFO:
            return RECORD in files.read_json(file)
        return file.name == files.LOCK or (started and file.name in names)

    files.check_own("folder", path, "features", ours)


def _lines(paths):
    """The content of paths.txt."""
    lines = []
    for path in paths:
        # Whoever reads lines may split at more than "\n": Python at U+2028, too.
        if path.splitlines() != [path]:
            raise InputError(f"{path!r} has a line break in its name")
        lines.append(os.fsencode(path) + b"\n")
    return b"".join(lines)
