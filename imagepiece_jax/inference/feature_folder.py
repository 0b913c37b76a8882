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
from jaxtyping import Float, Int

from imagepiece_jax.common import files
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference.file_records import (
    FileRecord,
    read_and_record,
    record_unread_file,
)
from imagepiece_jax.models.record import describe_difference, list_differences

# pooled.npy [photographs, D]; on request logits.npy [photographs, classes] and
# patches.npy [photographs, h, w, D]. A photograph's row is its line in paths.txt.
ARRAY_NAMES = ("pooled", "logits", "patches")
INFO_FILE = "info.json"  # {SETTINGS_KEY: the settings that decide a row, "rows": count}
PATHS_FILE = "paths.txt"  # the photographs' paths, one per line
DAMAGED_FILE = "damaged.csv"  # row, path and reason of NaN rows
RECORDS_FILE = "files.jsonl"  # a FileRecord per row: the file the row was computed from
NEW_FOLDER = ".new"
COMPLETE_FOLDER = ".complete"
SETTINGS_KEY = "made_by"  # key in info.json
FLUSH_SECONDS = 5.0  # between two writes: a kill loses as much work
STAT_THREADS = 16  # for looking at files, which is slow over a network


@contextlib.contextmanager
def open_feature_folder(
    path: str | os.PathLike, *folder_arguments: Any
) -> Iterator["FeatureFolder"]:
    """Open a FeatureFolder and lock it against other processes.

    folder_arguments: FeatureFolder's arguments after `path`
    Raises InputError for a folder in use, or with other settings.
    """
    path = pathlib.Path(path)
    check_feature_folder(path)
    with files.locked_folder("folder", path):
        folder = FeatureFolder(path, *folder_arguments)
        try:
            yield folder
        finally:
            folder.flush_rows()


class FeatureFolder:
    """The feature rows for a list of photographs.

    settings: they decide a row; a folder with other settings is refused
    paths: without line breaks
    shapes: {array name: shape of one row}
    """

    def __init__(
        self,
        path: pathlib.Path,
        settings: Mapping[str, Any],
        paths: Sequence[str],
        shapes: Mapping[str, tuple[int, ...]],
        dtype: str,
    ) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self._settings = settings
        self._paths = paths
        self._shapes = shapes
        self._new_folder = path / NEW_FOLDER
        self._unwritten_records: list[FileRecord] = []
        self._flush_time = time.monotonic()
        # A killed process may have left temporary files.
        for leftover in [*path.glob(".*.tmp"), *self._new_folder.glob(".*.tmp")]:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        self._replace_earlier_files()  # finish what a killed process had started
        self._earlier_arrays, records = self._read_rows(path)
        _, new_records = self._read_rows(self._new_folder)
        self._first_new_row = len(records)
        self._end_row = self._first_new_row + len(new_records)
        self._find_rows([*records, *new_records])
        if len(self.missing_indices) or self._new_folder.exists():
            self._start_new_folder(new_records)

    def _read_rows(
        self, folder: pathlib.Path
    ) -> tuple[dict[str, np.ndarray], list[FileRecord]]:
        """Read a folder's complete rows: (memory-mapped arrays, FileRecords)."""
        folder_info = _read_info(folder)
        if not folder_info:
            return {}, []
        if mismatches := list_differences(self._settings, folder_info[SETTINGS_KEY]):
            problem = describe_difference(mismatches, f"{self.path} was started with")
            raise InputError(f"{mismatches[0][0]} {problem}; give another folder")
        try:
            *lines, _ = (folder / RECORDS_FILE).read_bytes().split(b"\n")
            arrays = {
                name: np.load(folder / f"{name}.npy", "r") for name in self._shapes
            }
        except (FileNotFoundError, ValueError, EOFError):
            return {}, []
        # A kill may leave arrays and lines of different lengths.
        num_rows = min(map(len, [lines, *arrays.values()]))
        for name, array in arrays.items():
            if (array.shape[1:], array.dtype) != (self._shapes[name], self.dtype):
                num_rows = 0
        if folder_info["rows"] not in (None, len(lines)):  # lines were removed
            num_rows = 0
        return arrays, [FileRecord.parse_line(line) for line in lines[:num_rows]]

    def _find_rows(self, row_records: Sequence[FileRecord]) -> None:
        """Find the rows of all photographs with unchanged files."""
        # A file with an unchanged path, size and times is not read. Any other file is
        # read if some row has its size, and keeps the row with equal bytes: a moved or
        # copied file.
        row_of_file: dict[tuple, int] = {}  # by file_state, and by content
        for row, record in enumerate(row_records):
            if record.digest:
                row_of_file[record.file_state] = row_of_file[record.content] = row
        known_sizes = {record.size for record in row_records}

        def find_row(path: str) -> tuple[int, FileRecord | None]:
            """Find a photograph's (row, FileRecord); (-1, None) without a row."""
            try:
                record = record_unread_file(path)
                row = row_of_file.get(record.file_state)
                if row is None and record.size in known_sizes:
                    _, record = read_and_record(path)
                    row = row_of_file.get(record.content)
            except OSError:
                return -1, None
            if row is None:
                return -1, None
            _, _, _, _, digest, reason = row_records[row]
            return row, record._replace(digest=digest, reason=reason)

        with ThreadPool(STAT_THREADS) as pool:
            found_pairs = pool.map(find_row, self._paths)
        self._path_rows = np.array([row for row, _ in found_pairs], np.int64)
        self._records = [record for _, record in found_pairs]
        # Indices of photographs without a row, and the number of rows to leave out.
        self.missing_indices = np.flatnonzero(self._path_rows < 0)
        kept_rows = {row for row, _ in found_pairs if 0 <= row < self._first_new_row}
        self.num_removed = self._first_new_row - len(kept_rows)

    def _start_new_folder(self, records: Sequence[FileRecord]) -> None:
        """Prepare `.new` for appending rows after the rows of `records`."""
        self._new_folder.mkdir(exist_ok=True)
        folder_info = {SETTINGS_KEY: self._settings, "rows": None}
        files.write_json(self._new_folder / INFO_FILE, folder_info)
        for name in self._shapes:
            (self._new_folder / f"{name}.npy").touch()
        self._set_row_count(len(records))
        files.replace_file(self._new_folder / RECORDS_FILE, _json_lines(records))

    def _set_row_count(self, num_rows: int) -> None:
        """Make the arrays in `.new` hold exactly `num_rows`, and flush them."""
        for name, shape in self._shapes.items():
            header = self._npy_header(name, num_rows)
            row_bytes = int(np.prod(shape)) * self.dtype.itemsize
            with open(self._new_folder / f"{name}.npy", "r+b") as file:
                file.write(header)
                file.truncate(len(header) + num_rows * row_bytes)
                with files.ignore_unsupported():
                    os.fsync(file.fileno())

    def _npy_header(self, name: str, num_rows: int) -> bytes:
        """Make the header of an .npy file with `num_rows`."""
        # NumPy's header has the same length for any number, so it can be overwritten.
        header = io.BytesIO()
        shape = (num_rows, *self._shapes[name])
        fields = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, fields)
        return header.getvalue()

    @property
    def damaged_rows(self) -> list[tuple[int, str, str]]:
        """List (row, path, reason) for photographs without features."""
        damaged_rows = []
        for row, record in enumerate(self._records):
            if record and record.reason:
                damaged_rows.append((row, self._paths[row], record.reason))
        return damaged_rows

    def append_rows(
        self,
        indices: Sequence[int] | Int[np.ndarray, " rows"],
        arrays: Mapping[str, Float[np.ndarray, "rows ..."]],
        records: Sequence[FileRecord],
    ) -> None:
        """Append rows.

        indices: indices of the photographs, in the order of the rows
        arrays: {name: rows}
        """
        for name in self._shapes:
            with open(self._new_folder / f"{name}.npy", "ab") as file:
                file.write(arrays[name].tobytes())
        for index, record in zip(indices, records, strict=True):
            self._path_rows[index] = self._end_row
            self._records[index] = record
            self._end_row += 1
        self._unwritten_records += records
        if time.monotonic() > self._flush_time + FLUSH_SECONDS:
            self.flush_rows()

    def flush_rows(self) -> None:
        """Flush all new rows to the disk, then write their records."""
        if not self._unwritten_records:
            return
        # Records follow the rows, so that a kill never leaves a record without its row.
        self._set_row_count(self._end_row - self._first_new_row)
        with open(self._new_folder / RECORDS_FILE, "ab") as file:
            file.write(_json_lines(self._unwritten_records))
        self._unwritten_records = []
        self._flush_time = time.monotonic()

    def complete_folder(self) -> None:
        """Replace the folder's set by all photographs' rows, in their order."""
        self.flush_rows()
        new_rows = np.arange(self._first_new_row, self._end_row)
        if np.array_equal(self._path_rows, new_rows):
            self._write_text_files(self._new_folder)
            os.rename(self._new_folder, self.path / COMPLETE_FOLDER)
        else:
            with files.replacement_folder(self.path / COMPLETE_FOLDER) as folder:
                if not np.array_equal(self._path_rows, np.arange(self._first_new_row)):
                    self._copy_rows(folder)
                self._write_text_files(folder)
        self._replace_earlier_files()
        shutil.rmtree(self._new_folder, ignore_errors=True)

    def _copy_rows(self, folder: pathlib.Path) -> None:
        """Write all photographs' arrays, in their order, into a folder."""
        new_arrays, _ = self._read_rows(self._new_folder)
        for name in self._shapes:
            with open(folder / f"{name}.npy", "wb") as file:
                file.write(self._npy_header(name, len(self._path_rows)))
                for row in self._path_rows.tolist():
                    if row < self._first_new_row:
                        file.write(self._earlier_arrays[name][row].tobytes())
                    else:
                        new_row = row - self._first_new_row
                        file.write(new_arrays[name][new_row].tobytes())

    def _write_text_files(self, folder: pathlib.Path) -> None:
        """Write paths.txt, damaged.csv, files.jsonl and info.json."""
        csv_file = io.StringIO(newline="")
        csv_writer = csv.writer(csv_file, lineterminator="\n")
        csv_writer.writerows([("row", "path", "reason"), *self.damaged_rows])
        damaged_csv = csv_file.getvalue().encode(errors="surrogateescape")
        path_lines = [os.fsencode(path) + b"\n" for path in self._paths]
        folder_info = {SETTINGS_KEY: self._settings, "rows": len(self._path_rows)}
        files.replace_file(folder / PATHS_FILE, b"".join(path_lines))
        files.replace_file(folder / DAMAGED_FILE, damaged_csv)
        files.replace_file(folder / RECORDS_FILE, _json_lines(self._records))
        files.write_json(folder / INFO_FILE, folder_info)

    def _replace_earlier_files(self) -> None:
        """Move `.complete`'s files, if there are any, into the folder itself."""
        # paths.txt is absent meanwhile and moves last, so no reader takes a row for
        # another photograph's.
        complete_folder = self.path / COMPLETE_FOLDER
        if not complete_folder.exists():
            return
        if (complete_folder / PATHS_FILE).exists():
            (self.path / PATHS_FILE).unlink(missing_ok=True)
        file_names = {file.name for file in complete_folder.iterdir()}
        for name in sorted(file_names, key=lambda name: name == PATHS_FILE):
            os.replace(complete_folder / name, self.path / name)
        complete_folder.rmdir()


def check_feature_folder(path: pathlib.Path) -> None:
    """Check that a folder holds features, or nothing."""
    # Without an info.json, even files with our names count as somebody else's.
    folders = [path, path / NEW_FOLDER, path / COMPLETE_FOLDER]
    own_names = set()
    new_folder = path / NEW_FOLDER
    if new_folder.is_dir() and all(
        file.name.endswith(".tmp") for file in new_folder.iterdir()
    ):
        own_names.add(NEW_FOLDER)  # a killed process left it, before its info.json
    if any([_read_info(folder) for folder in folders]):
        own_names |= {INFO_FILE, PATHS_FILE, DAMAGED_FILE, RECORDS_FILE}
        own_names |= {NEW_FOLDER, COMPLETE_FOLDER}
        own_names |= {f"{name}.npy" for name in ARRAY_NAMES}
    files.check_own_files("folder", path, "features", lambda f: f.name in own_names)


def _read_info(folder: pathlib.Path) -> dict[str, Any]:
    """Read a folder's info.json; {} if the folder has no rows."""
    file = folder / INFO_FILE
    folder_info = files.read_json(file) if file.exists() else {}
    has_rows = isinstance(folder_info.get(SETTINGS_KEY), dict) and "rows" in folder_info
    return folder_info if has_rows else {}


def _json_lines(records: Sequence[FileRecord | None]) -> bytes:
    """Write FileRecords as lines of JSON."""
    return b"".join([json.dumps(record).encode() + b"\n" for record in records])
