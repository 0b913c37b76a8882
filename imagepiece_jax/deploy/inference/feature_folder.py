"""A folder with features of many photographs, which a killed process leaves whole.

pooled.npy      [photographs, D], a row for each line of paths.txt
logits.npy      [photographs, classes], and patches.npy [photographs, h, w, D] on
                request
paths.txt       the paths of the photographs, one a line
damaged.csv     row, path and reason of each that has no features: its row is NaN
info.json       what the rows are made by, and their comparison with those of the dense
                model; it is there before all other files

Arrays have their whole size from the start, and names that end in UNFINISHED until all
rows are there. How many are there is "rows" in info.json.
"""

import contextlib
import csv
import io
import os
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from imagepiece_jax.common import files
from imagepiece_jax.common.version import __version__
from imagepiece_jax.data.source import FileSource
from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.models.record import differences, sentence

ARRAYS = ("pooled", "logits", "patches")
INFO = "info.json"
PATHS = "paths.txt"
DAMAGED = "damaged.csv"
COLUMNS = ("row", "path", "reason")  # of damaged.csv
UNFINISHED = ".unfinished"
KEY = "imagepiece_jax"  # in info.json: the version that started the folder
ENCODED = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
INTERVAL = 5.0  # seconds between two counts: so much work is lost by a kill


class FeatureFolder:
    """The files of a folder, which no other process writes until it is closed.

    info: the content of info.json; of a new folder only KEY
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        check_folder(self.path)
        self._lock = files.locked("folder", self.path)
        self._lock.__enter__()
        for left in self.path.glob(".*.tmp"):  # by a killed process
            left.unlink()
        self.info = {KEY: __version__}
        if (self.path / INFO).exists():
            self.info = files.read_json(self.path / INFO)
        else:
            self.write_info()  # by which the files after it are known

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._lock.__exit__(*error)

    def write_info(self, **facts: Any):
        """Add facts to info.json."""
        self.info |= facts
        files.write_json(self.path / INFO, self.info)

    def begin(self, made_by: Mapping[str, Any], photographs: FileSource, **facts: Any):
        """Start a new folder, or check that a started one holds the same rows.

        made_by: the record of what decides a row (`models.record`)
        facts: further facts for info.json, which decide nothing
        """
        found = {"count": len(photographs), "digest": photographs.digest}
        paths = _lines(photographs)
        if len(self.info) > 1:
            self._check_record(made_by)
            self._check_images(found, paths)
        table = self.path / PATHS
        if not table.exists() or table.read_bytes() != paths:
            files.replace_file(table, paths)
        if len(self.info) == 1:
            self.write_info(**facts, made_by=made_by, images=found, rows=0)

    def _check_record(self, made_by):
        for name, kind in (("made_by", dict), ("images", dict), ("rows", int)):
            if not isinstance(self.info.get(name), kind):
                raise _changed(self.path / INFO)
        if found := differences(made_by, self.info["made_by"]):
            problem = sentence(found, f"{self.path} was started with")
            raise InputError(f"{found[0][0]} {problem}; give another folder")

    def _check_images(self, found, paths):
        started = self.info["images"]
        if started == found:
            if not 0 <= self.info["rows"] <= found["count"]:
                raise _changed(self.path / INFO)
            return
        table = self.path / PATHS
        if table.exists() and table.read_bytes() == paths:
            raise InputError(
                f"some of images have changed since {self.path} was started"
            )
        raise InputError(
            f"images has {found['count']} photographs, others than the "
            f"{started.get('count')} that {self.path} was started with; {table} names "
            "those"
        )


def check_folder(path: pathlib.Path):
    """Check that a folder holds features, or nothing.

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


def _changed(file):
    """The error for a file that is not as it was written."""
    return InputError(f"{file} is damaged, or was changed")


def _lines(photographs):
    """The content of paths.txt."""
    lines = []
    for index in range(len(photographs)):
        path = photographs.name(index)
        # Whoever reads lines may split at more than "\n": Python at U+2028, too.
        if path.splitlines() != [path]:
            raise InputError(f"{path!r} has a line break in its name")
        lines.append(os.fsencode(path) + b"\n")
    return b"".join(lines)


class Arrays:
    """The arrays of a folder, which are filled row by row, and the damaged rows.

    shapes: of the arrays, by name
    rows: the number of first rows that are there, by info.json
    damaged: COLUMNS of those among them that are damaged
    Raises RunError where there is no room for one.
    """

    def __init__(
        self, folder: FeatureFolder, shapes: Mapping[str, Sequence[int]], dtype: str
    ):
        self.dtype = np.dtype(dtype)
        self._folder = folder
        self._names = [*shapes]
        if not all(self._file(name).exists() for name in shapes):
            folder.write_info(rows=0)  # those of a file that is lacking are made again
        self.rows = folder.info["rows"]
        self.damaged = [row for row in self._read_damaged() if row[0] < self.rows]
        self._arrays = {name: self._opened(name, shapes[name]) for name in shapes}
        self._counted = time.monotonic()

    def _part(self, name):
        """The file of an array whose rows are not all there."""
        return self._folder.path / f"{name}.npy{UNFINISHED}"

    def _file(self, name):
        """The file of an array."""
        part = self._part(name)
        return part if part.exists() else part.with_suffix("")

    def _opened(self, name, shape):
        """The array in its file, which is made anew where no row is there."""
        shape = tuple(shape)
        if self.rows == 0:
            return _made(self._part(name), shape, self.dtype)
        file = self._file(name)
        found = None
        # "r+" would fill a file that is cut off with zeros; "r" raises ValueError.
        with contextlib.suppress(ValueError):
            found = np.lib.format.open_memmap(file, "r")
        if found is not None and (found.shape, found.dtype) == (shape, self.dtype):
            if file.stat().st_size == found.offset + found.nbytes:
                return np.lib.format.open_memmap(file, "r+")
        raise _changed(file)

    def _read_damaged(self):
        table = self._folder.path / DAMAGED
        if not table.exists():
            return []
        try:
            with open(table, **ENCODED) as file:
                _, *rows = csv.reader(file)
            return [(int(row), path, reason) for row, path, reason in rows]
        except ValueError as error:
            raise _changed(table) from error

    def append(
        self, arrays: Mapping[str, np.ndarray], damaged: Iterable[tuple[int, str, str]]
    ):
        """Add the next rows to all arrays; damaged: COLUMNS of those among them."""
        stop = self.rows + len(arrays[self._names[0]])
        for name, array in self._arrays.items():
            array[self.rows : stop] = arrays[name]
        self.damaged += damaged
        self.rows = stop
        if time.monotonic() > self._counted + INTERVAL:
            self.count()

    def count(self):
        """Write all rows to the disk, and then how many they are."""
        for array in self._arrays.values():
            array.flush()
        table = self._folder.path / DAMAGED
        if self.damaged:
            text = io.StringIO(newline="")
            csv.writer(text, lineterminator="\n").writerows([COLUMNS, *self.damaged])
            content = text.getvalue().encode(ENCODED["encoding"], ENCODED["errors"])
            files.replace_file(table, content)
        else:
            table.unlink(missing_ok=True)
        self._folder.write_info(rows=self.rows)
        self._counted = time.monotonic()

    def finish(self):
        """Give all arrays their names."""
        for name in self._names:
            part = self._part(name)
            if part.exists():
                os.replace(part, part.with_suffix(""))


def _made(file, shape, dtype):
    """A new array in a file of its whole size.

    The disk has room for it from now on: a memory map that finds none ends the process.
    Raises RunError where it has none.
    """
    try:
        array = np.lib.format.open_memmap(file, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):  # which macOS lacks
            with open(file, "r+b") as made:
                os.posix_fallocate(made.fileno(), 0, file.stat().st_size)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise RunError(
            f"{file} cannot be written ({error.strerror}); fix this, and run the same "
            "command again"
        ) from error
    return array
