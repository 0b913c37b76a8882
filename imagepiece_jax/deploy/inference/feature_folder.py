"""A folder with features of many photographs, a row for each.

pooled.npy      [photographs, D], a row for each line of paths.txt
logits.npy      [photographs, classes], and patches.npy [photographs, h, w, D] on
                request
paths.txt       the paths of the photographs, one a line
damaged.csv     row, path and reason of each that has no features: its row is NaN
files.jsonl     the file that each row was computed from: a FileRecord
info.json       what decides a row, and how many rows are there

These files are always a complete set. New rows are counted in the folder `.new`, where
a killed process leaves them. At the end they and the earlier rows that are still right
become a set in the folder `.complete`, whose files then replace the earlier ones.
"""

import contextlib
import csv
import io
import json
import os
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np

from imagepiece_jax.common import files
from imagepiece_jax.deploy.inference.file_records import FileRecord, look_at, read
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.record import differences, sentence

ARRAYS = ("pooled", "logits", "patches")
INFO = "info.json"
PATHS = "paths.txt"
DAMAGED = "damaged.csv"
FILES = "files.jsonl"
NEW = ".new"
COMPLETE = ".complete"
RECORD = "made_by"  # in info.json
INTERVAL = 5.0  # seconds between two counts: a kill loses as much work
THREADS = 16  # threads that look at files, which is slow over a network
CHUNK = 2**26  # bytes of rows that are copied at a time


class RowSet:
    """The rows of a folder that are there, and the records of their files.

    shapes: of a row of each array, by name
    """

    def __init__(self, path: pathlib.Path, shapes: Mapping, dtype: np.dtype):
        self.path = path
        self._shapes = shapes
        self._dtype = dtype
        self._offsets = {}  # bytes before the first row, by array
        self.records = []
        if not (path / INFO).exists() or not (path / FILES).exists():
            return
        counts = [files.read_json(path / INFO)["rows"]]
        counts += [self._rows_in(name) for name in shapes]
        with open(path / FILES, "rb") as file:
            for line, _ in zip(file, range(min(counts)), strict=False):
                self.records.append(FileRecord(*json.loads(line)))

    def _rows_in(self, name):
        """Number of whole rows in the file of an array; 0 of another array."""
        shape = self._shapes[name]
        try:
            with open(self.path / f"{name}.npy", "rb") as file:
                np.lib.format.read_magic(file)
                header = np.lib.format.read_array_header_1_0(file)
                self._offsets[name] = file.tell()
                size = os.fstat(file.fileno()).st_size
        except (FileNotFoundError, ValueError):
            return 0
        (_, *row), is_fortran, dtype = header
        if (tuple(row), is_fortran, dtype) != (tuple(shape), False, self._dtype):
            return 0
        return (size - self._offsets[name]) // self.row_bytes(name)

    def row_bytes(self, name: str) -> int:
        return int(np.prod(self._shapes[name])) * self._dtype.itemsize

    def array(self, name: str) -> np.ndarray:
        """The rows of an array, on disk."""
        shape = (len(self.records), *self._shapes[name])
        if not len(self.records):
            return np.empty(shape, self._dtype)
        file = self.path / f"{name}.npy"
        return np.memmap(file, self._dtype, "r", self._offsets[name], shape)

    def header(self, name: str, count: int) -> bytes:
        """The bytes with which the .npy file of `count` rows begins.

        NumPy makes it as long for any count.
        """
        header = io.BytesIO()
        shape = (count, *self._shapes[name])
        facts = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, facts)
        return header.getvalue()


class FeatureFolder(contextlib.AbstractContextManager):
    """The rows of photographs in a folder, which no other process writes meanwhile.

    record: what decides a row
    paths: of the photographs, without line breaks
    shapes: of a row of each array, by name
    missing: places among the photographs that have no row yet
    leaving: number of rows that are no photograph's any more
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
        self._made_by = record
        self._paths = paths
        self._shapes = shapes
        check_folder(self.path)
        with contextlib.ExitStack() as stack:
            stack.enter_context(files.locked("folder", self.path))
            self._remove_unfinished()
            self._replace_earlier()  # what a killed process was about to do
            for folder in (self.path, self.path / NEW):
                self._check_record(folder)
            self._earlier = RowSet(self.path, shapes, self.dtype)
            self._new = RowSet(self.path / NEW, shapes, self.dtype)
            self._find_rows()
            self._files = self._open_new(stack)
            self._stack = stack.pop_all()
        self._counted = time.monotonic()

    def __exit__(self, *error):
        with self._stack:
            if (self.path / NEW).exists():
                self._count()

    def _remove_unfinished(self):
        """Remove what a killed process left unfinished."""
        for folder in (self.path, self.path / NEW):
            for left in folder.glob(".*.tmp"):
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()

    def _check_record(self, folder):
        """Check that the rows of a folder are decided by the same things."""
        if not (folder / INFO).exists():
            return
        info = files.read_json(folder / INFO)
        if found := differences(self._made_by, info[RECORD]):
            problem = sentence(found, f"{self.path} was started with")
            raise InputError(f"{found[0][0]} {problem}; give another folder")

    def _find_rows(self):
        """Find the row of each photograph whose file has not changed.

        A file that looks as it did is not read. One that looks different has its row
        if its bytes are those of any row, as of a file that was moved or copied.
        """
        known = [*self._earlier.records, *self._new.records]
        seen = {}
        contents = {}
        for row, record in enumerate(known):
            if record.digest:
                seen[record.seen] = row
                contents[record.size, record.digest] = row
        sizes = {size for size, _ in contents}

        def find(path):
            """(the row of a photograph, its record), or (-1, None)."""
            try:
                record = look_at(path)
                row = seen.get(record.seen, -1)
                if row < 0 and record.size in sizes:
                    _, record = read(path)
                    row = contents.get((record.size, record.digest), -1)
            except OSError:
                return -1, None
            if row < 0:
                return -1, None
            row_of = known[row]
            return row, record._replace(digest=row_of.digest, reason=row_of.reason)

        with ThreadPool(THREADS) as pool:
            found = pool.map(find, self._paths)
        self._rows = np.array([row for row, _ in found], np.int64)
        self._records = [record for _, record in found]
        self.missing = np.flatnonzero(self._rows < 0)
        kept = np.unique(self._rows[self._rows < len(self._earlier.records)])
        self.leaving = len(self._earlier.records) - np.count_nonzero(kept >= 0)

    def _open_new(self, stack):
        """The files of new rows, open behind those that are there, by name."""
        if not len(self.missing):
            return {}
        folder = self._new.path
        folder.mkdir(exist_ok=True)
        count = len(self._new.records)
        lines = _lines_of_records(self._new.records)
        starts = {FILES: b"".join(lines)}
        for name in self._shapes:
            starts[f"{name}.npy"] = self._new.header(name, 0)
        opened = {}
        for name, start in starts.items():
            path = folder / name
            file = open(path, "r+b" if count else "w+b")
            opened[name] = stack.enter_context(file)
            file.write(start)
            end = len(start)
            if name != FILES:
                end += count * self._new.row_bytes(path.stem)
            file.truncate(end)
            file.seek(end)
        return opened

    @property
    def damaged(self) -> list[tuple[int, str, str]]:
        """(row, path, reason) of the photographs without features."""
        found = []
        for row, record in enumerate(self._records):
            if record and record.reason:
                found.append((row, self._paths[row], record.reason))
        return found

    def append(
        self,
        places: Sequence[int],
        arrays: Mapping[str, np.ndarray],
        records: Sequence[FileRecord],
    ):
        """Add rows of photographs: their places, arrays by name, and records."""
        first = len(self._earlier.records) + len(self._new.records)
        self._rows[places] = np.arange(first, first + len(places))
        for place, record in zip(places, records, strict=True):
            self._records[place] = record
        for name in self._shapes:
            self._files[f"{name}.npy"].write(arrays[name].tobytes())
        self._files[FILES].writelines(_lines_of_records(records))
        self._new.records += records
        if time.monotonic() > self._counted + INTERVAL:
            self._count()

    def _count(self):
        """Write all new rows to the disk, and then how many they are."""
        for file in self._files.values():
            _write_to_disk(file)
        self._write_info(self._new.path, len(self._new.records))
        self._counted = time.monotonic()

    def complete(self):
        """Make all rows the folder's, in the order of the photographs."""
        if (self.path / NEW).exists():
            self._count()
        if np.array_equal(self._rows, np.arange(len(self._earlier.records))):
            self._write_lists(self.path)  # paths may be typed in another way
        elif self._is_new_set():
            for name in self._shapes:
                file = self._files[f"{name}.npy"]
                file.seek(0)
                file.write(self._new.header(name, len(self._rows)))
                _write_to_disk(file)
            self._write_lists(self._new.path)
            os.rename(self._new.path, self.path / COMPLETE)
        else:
            with files.replacing_folder(self.path / COMPLETE) as folder:
                for name in self._shapes:
                    self._copy_rows(name, folder / f"{name}.npy")
                self._write_lists(folder)
        self._replace_earlier()
        shutil.rmtree(self._new.path, ignore_errors=True)

    def _is_new_set(self):
        """Whether the new rows, which are open, are all rows in their order."""
        count = len(self._new.records)
        alone = self._files and not self._earlier.records
        return alone and np.array_equal(self._rows, np.arange(count))

    def _copy_rows(self, name, path):
        """Write an array with the rows of all photographs."""
        earlier = self._earlier.array(name)
        new = RowSet(self._new.path, self._shapes, self.dtype).array(name)
        step = max(1, CHUNK // self._new.row_bytes(name))
        with open(path, "wb") as file:
            file.write(self._new.header(name, len(self._rows)))
            for start in range(0, len(self._rows), step):
                rows = self._rows[start : start + step]
                is_new = rows >= len(earlier)
                chunk = np.empty((len(rows), *self._shapes[name]), self.dtype)
                chunk[~is_new] = earlier[rows[~is_new]]
                chunk[is_new] = new[rows[is_new] - len(earlier)]
                file.write(chunk.tobytes())

    def _write_lists(self, folder):
        """Write what is no array, for all photographs, where it differs."""
        paths = b"".join([os.fsencode(path) + b"\n" for path in self._paths])
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerows([("row", "path", "reason"), *self.damaged])
        contents = {
            PATHS: paths,
            DAMAGED: text.getvalue().encode(errors="surrogateescape"),
            FILES: b"".join(_lines_of_records(self._records)),
        }
        for name, content in contents.items():
            file = folder / name
            if not file.exists() or file.read_bytes() != content:
                files.replace_file(file, content)
        self._write_info(folder, len(self._rows))

    def _write_info(self, folder, rows):
        files.write_json(folder / INFO, {RECORD: self._made_by, "rows": rows})

    def _replace_earlier(self):
        """Move a complete set to the folder itself, as a killed process would have.

        paths.txt is absent meanwhile, so that no row is taken for another photograph's.
        """
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
    """Check that a folder holds features, or nothing.

    Without an info.json its files are not of features, whatever their names are.
    """
    places = [path, path / NEW, path / COMPLETE]
    started = any((place / INFO).exists() for place in places)
    names = {INFO, PATHS, DAMAGED, FILES, *[f"{name}.npy" for name in ARRAYS]}

    def ours(file):
        if file in places:
            inside = [child.name for child in file.iterdir()]
            return all(name in names or name.endswith(".tmp") for name in inside)
        if file.name == INFO:
            return RECORD in files.read_json(file)
        return file.name == files.LOCK or (started and file.name in names)

    files.check_own("folder", path, "features", ours)


def _lines_of_records(records):
    """FileRecords as lines of JSON."""
    return [json.dumps(record).encode() + b"\n" for record in records]


def _write_to_disk(file):
    """Have the disk hold what was written to an open file."""
    file.flush()
    with files.where_supported():
        os.fsync(file.fileno())
