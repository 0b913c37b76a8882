"""A folder with features, one row per photograph.

Files next to a paths.txt are always a complete set. New rows collect in `.new`, where a
killed process leaves them for the next run. At the end, new rows and still valid
earlier rows become a set in `.complete`, whose files replace the earlier set.
"""

import contextlib
import csv
import io
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np

from imagepiece_jax.common import files
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference.file_records import FileRecord, look_at, read
from imagepiece_jax.models.record import differences, sentence

# pooled.npy [photographs, D]; on request logits.npy [photographs, classes] and
# patches.npy [photographs, h, w, D]. A photograph's row is its line in paths.txt.
ARRAYS = ("pooled", "logits", "patches")
INFO = "info.json"  # the record that decides a row (RECORD), and the number of rows
PATHS = "paths.txt"  # the photographs' paths, one per line
DAMAGED = "damaged.csv"  # row, path and reason of photographs without features (NaN)
FILES = "files.jsonl"  # a FileRecord per row: the file the row was computed from
NEW = ".new"
COMPLETE = ".complete"
RECORD = "made_by"  # key in info.json
INTERVAL = 5.0  # seconds between two writes: a kill loses as much work
THREADS = 16  # for looking at files, which is slow over a network


@contextlib.contextmanager
def opened(path: str | os.PathLike, *contents: Any) -> Iterator["FeatureFolder"]:
    """Open a FeatureFolder and lock it against other processes.

    contents: FeatureFolder's arguments after `path`
    Raises InputError for a folder in use, or with a different record.
    """
    path = pathlib.Path(path)
    check_folder(path)
    with files.locked_folder("folder", path):
        folder = FeatureFolder(path, *contents)
        try:
            yield folder
        finally:
            folder.count()


class FeatureFolder:
    """The feature rows for a list of photographs.

    record: the settings that decide a row; a folder with a different record is refused
    paths: without line breaks
    shapes: {array name: shape of one row}
    missing: indices of photographs without a row yet
    leaving: number of earlier rows that no photograph uses any more
    """

    def __init__(
        self,
        path: pathlib.Path,
        record: Mapping[str, Any],
        paths: Sequence[str],
        shapes: Mapping[str, tuple[int, ...]],
        dtype: str,
    ):
        self.path = path
        self.dtype = np.dtype(dtype)
        self._made_by = record
        self._paths = paths
        self._shapes = shapes
        self._new = path / NEW
        self._lines = []  # FileRecords that are not yet in files.jsonl
        self._counted = time.monotonic()
        # A killed process may have left temporary files.
        for leftover in [*path.glob(".*.tmp"), *self._new.glob(".*.tmp")]:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        self._replace_earlier()  # finish what a killed process had started
        self._earlier, records = self._rows_in(path)
        _, new_records = self._rows_in(self._new)
        self._first = len(records)  # index of the first new row
        self._end = self._first + len(new_records)
        self._find_rows([*records, *new_records])
        if len(self.missing) or self._new.exists():
            self._prepare(new_records)

    def _rows_in(self, folder):
        """Read a folder's complete rows: (memory-mapped arrays, FileRecords)."""
        info = _info(folder)
        if not info:
            return {}, []
        if mismatches := differences(self._made_by, info[RECORD]):
            problem = sentence(mismatches, f"{self.path} was started with")
            raise InputError(f"{mismatches[0][0]} {problem}; give another folder")
        try:
            *lines, _ = (folder / FILES).read_bytes().split(b"\n")
            arrays = {
                name: np.load(folder / f"{name}.npy", "r") for name in self._shapes
            }
        except (FileNotFoundError, ValueError, EOFError):
            return {}, []
        # A kill may leave arrays and lines of different lengths.
        count = min(map(len, [lines, *arrays.values()]))
        for name, array in arrays.items():
            if (array.shape[1:], array.dtype) != (self._shapes[name], self.dtype):
                count = 0
        if info["rows"] not in (None, len(lines)):  # lines were removed
            count = 0
        return arrays, [FileRecord.of_line(line) for line in lines[:count]]

    def _find_rows(self, known):
        """Find the rows of all photographs with unchanged files.

        known: FileRecords of all rows
        """
        # A file with an unchanged path, size and times is not read. Any other file is
        # read if some row has its size, and keeps the row with equal bytes: a moved or
        # copied file.
        rows = {}  # by the file, and by its content
        for row, record in enumerate(known):
            if record.digest:
                rows[record.seen] = rows[record.content] = row
        sizes = {record.size for record in known}

        def find(path):
            """Find a photograph's (row, FileRecord); (-1, None) without a row."""
            try:
                record = look_at(path)
                row = rows.get(record.seen)
                if row is None and record.size in sizes:
                    _, record = read(path)
                    row = rows.get(record.content)
            except OSError:
                return -1, None
            if row is None:
                return -1, None
            of_row = known[row]
            return row, record._replace(digest=of_row.digest, reason=of_row.reason)

        with ThreadPool(THREADS) as pool:
            results = pool.map(find, self._paths)
        self._rows = np.array([row for row, _ in results], np.int64)
        self._records = [record for _, record in results]
        self.missing = np.flatnonzero(self._rows < 0)
        kept = {row for row, _ in results if 0 <= row < self._first}
        self.leaving = self._first - len(kept)

    def _prepare(self, records):
        """Prepare `.new` for appending rows after the rows of `records`."""
        self._new.mkdir(exist_ok=True)
        files.write_json(self._new / INFO, {RECORD: self._made_by, "rows": None})
        for name in self._shapes:
            (self._new / f"{name}.npy").touch()
        self._write_counts(len(records))
        files.replace_file(self._new / FILES, _lines_of(records))

    def _write_counts(self, count):
        """Make the arrays in `.new` hold exactly `count` rows, and flush them."""
        for name, shape in self._shapes.items():
            header = self._header(name, count)
            row_bytes = int(np.prod(shape)) * self.dtype.itemsize
            with open(self._new / f"{name}.npy", "r+b") as file:
                file.write(header)
                file.truncate(len(header) + count * row_bytes)
                with files.where_supported():
                    os.fsync(file.fileno())

    def _header(self, name, count):
        """Make the header of an .npy file with `count` rows."""
        # NumPy's header has the same length for any count, so it can be overwritten.
        header = io.BytesIO()
        shape = (count, *self._shapes[name])
        facts = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, facts)
        return header.getvalue()

    @property
    def damaged(self) -> list[tuple[int, str, str]]:
        """List (row, path, reason) for photographs without features."""
        entries = []
        for row, record in enumerate(self._records):
            if record and record.reason:
                entries.append((row, self._paths[row], record.reason))
        return entries

    def append(
        self,
        indices: Sequence[int],
        arrays: Mapping[str, np.ndarray],
        records: Sequence[FileRecord],
    ):
        """Append rows.

        indices: indices of the photographs, in the order of the rows
        arrays: {name: rows}
        """
        for name in self._shapes:
            with open(self._new / f"{name}.npy", "ab") as file:
                file.write(arrays[name].tobytes())
        for index, record in zip(indices, records, strict=True):
            self._rows[index] = self._end
            self._records[index] = record
            self._end += 1
        self._lines += records
        if time.monotonic() > self._counted + INTERVAL:
            self.count()

    def count(self):
        """Flush all new rows to the disk, then write their records."""
        if not self._lines:
            return
        # Records follow the rows, so that a kill never leaves a record without its row.
        self._write_counts(self._end - self._first)
        with open(self._new / FILES, "ab") as file:
            file.write(_lines_of(self._lines))
        self._lines = []
        self._counted = time.monotonic()

    def complete(self):
        """Replace the folder's set by all photographs' rows, in their order."""
        self.count()
        new_rows = np.arange(self._first, self._end)
        if np.array_equal(self._rows, new_rows):
            self._write_lists(self._new)
            os.rename(self._new, self.path / COMPLETE)
        else:
            with files.replacement_folder(self.path / COMPLETE) as folder:
                if not np.array_equal(self._rows, np.arange(self._first)):
                    self._copy_rows(folder)
                self._write_lists(folder)
        self._replace_earlier()
        shutil.rmtree(self._new, ignore_errors=True)

    def _copy_rows(self, folder):
        """Write all photographs' arrays, in their order, into a folder."""
        new, _ = self._rows_in(self._new)
        for name in self._shapes:
            with open(folder / f"{name}.npy", "wb") as file:
                file.write(self._header(name, len(self._rows)))
                for row in self._rows.tolist():
                    if row < self._first:
                        file.write(self._earlier[name][row].tobytes())
                    else:
                        file.write(new[name][row - self._first].tobytes())

    def _write_lists(self, folder):
        """Write paths.txt, damaged.csv, files.jsonl and info.json."""
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerows([("row", "path", "reason"), *self.damaged])
        damaged = text.getvalue().encode(errors="surrogateescape")
        paths = [os.fsencode(path) + b"\n" for path in self._paths]
        info = {RECORD: self._made_by, "rows": len(self._rows)}
        files.replace_file(folder / PATHS, b"".join(paths))
        files.replace_file(folder / DAMAGED, damaged)
        files.replace_file(folder / FILES, _lines_of(self._records))
        files.write_json(folder / INFO, info)

    def _replace_earlier(self):
        """Move `.complete`'s files, if there are any, into the folder itself."""
        # paths.txt is absent meanwhile and moves last, so no reader takes a row for
        # another photograph's.
        complete = self.path / COMPLETE
        if not complete.exists():
            return
        if (complete / PATHS).exists():
            (self.path / PATHS).unlink(missing_ok=True)
        names = {file.name for file in complete.iterdir()}
        for name in sorted(names, key=lambda name: name == PATHS):
            os.replace(complete / name, self.path / name)
        complete.rmdir()


def check_folder(path: pathlib.Path):
    """Check that a folder holds features, or nothing."""
    # Without an info.json, even files with our names count as somebody else's.
    folders = [path, path / NEW, path / COMPLETE]
    names = {files.LOCK_NAME}
    new = path / NEW
    if new.is_dir() and all(file.name.endswith(".tmp") for file in new.iterdir()):
        names.add(NEW)  # a killed process left it, before its info.json
    if any([_info(folder) for folder in folders]):
        names |= {INFO, PATHS, DAMAGED, FILES, NEW, COMPLETE}
        names |= {f"{name}.npy" for name in ARRAYS}
    files.check_own_files("folder", path, "features", lambda file: file.name in names)


def _info(folder):
    """Read a folder's info.json; {} if the folder has no rows."""
    file = folder / INFO
    info = files.read_json(file) if file.exists() else {}
    return info if isinstance(info.get(RECORD), dict) and "rows" in info else {}


def _lines_of(records):
    """Write FileRecords as lines of JSON."""
    return b"".join([json.dumps(record).encode() + b"\n" for record in records])
