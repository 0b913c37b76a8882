"""Photographs' vectors in one SQLite file, a row per photograph.

SQLite keeps the file whole when its writer is killed, and lets one process write it.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.common.progress import log
from imagepiece_jax.errors import InputError, RunError

# {column: type of its numbers}
DTYPES = {"vector": np.dtype("<f4"), "map": np.dtype("<f2")}
# A large page: 100,000 vectors of 384 numbers are read in 0.35 s instead of 0.5 s. With
# a log (WAL) a batch does not wait for the disk: a power cut may lose batches, a kill
# loses none.
OPENING = """
PRAGMA page_size = 16384;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
BEGIN;
CREATE TABLE IF NOT EXISTS made_by (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS photographs (
    path TEXT PRIMARY KEY, size INTEGER, mtime INTEGER, ctime INTEGER, digest TEXT,
    vector BLOB NOT NULL, map BLOB
);
"""
STAT_THREADS = 16  # for looking at files, which is slow over a network


class PhotographFile(NamedTuple):
    """A photograph's file at the time it was read."""

    path: str
    size: int  # bytes
    mtime: int  # nanoseconds
    ctime: int  # nanoseconds; changes even if a copy keeps size and mtime
    digest: str = ""  # hash of the bytes; "": not read


def describe_photograph(path: str) -> PhotographFile:
    """Describe a file without its digest. Raises OSError."""
    status = os.stat(path)
    return PhotographFile(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def read_photograph(path: str) -> tuple[bytes, PhotographFile]:
    """Read a file: (bytes, PhotographFile). Raises OSError."""
    # The times are taken first, so that a write during the read shows as a change.
    photograph = describe_photograph(path)
    content = pathlib.Path(path).read_bytes()
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    return content, photograph._replace(size=len(content), digest=digest)


@contextlib.contextmanager
def open_store(
    file: str | os.PathLike, made_by: Mapping[str, Any], typed_reduction: str
) -> Iterator[sqlite3.Connection]:
    """Open or create a file for this process alone.

    made_by: JSON values of everything that decides a vector
    typed_reduction: for messages
    Raises InputError for a file made by others, RunError for a file in use.
    """
    with _connect(file, "rwc") as connection:  # makes a missing file
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        is_new = not connection.execute("SELECT * FROM sqlite_master").fetchone()
        earlier_made_by = {} if is_new else _read_made_by(connection)
        earlier_typed_reduction = earlier_made_by.pop("typed_reduction", None)
        if not is_new and earlier_made_by != made_by:
            from imagepiece_jax.models import record  # and JAX: not for `read_features`

            differences = record.list_differences(made_by, earlier_made_by)
            field, value, earlier_value = differences[0]  # one is enough to say
            # What was typed says more than the counts that it became.
            if field == "reduction" and typed_reduction != earlier_typed_reduction:
                value, earlier_value = typed_reduction, earlier_typed_reduction
            problem = f"is {value}, but {file} was made with {earlier_value}"
            raise InputError(f"{field} {problem}; give another file")
        connection.executescript(OPENING)
        if is_new:
            settings = {**made_by, "typed_reduction": typed_reduction}
            rows = [(name, json.dumps(value)) for name, value in settings.items()]
            connection.executemany("INSERT INTO made_by VALUES (?, ?)", rows)
        connection.commit()
        try:
            yield connection
        finally:
            connection.execute("PRAGMA journal_mode = DELETE")  # leaves a single file


@contextlib.contextmanager
def _connect(file, mode):
    """Connect to a file in SQLite's mode "rw", or "rwc", which makes a missing file."""
    # The caller commits: closing drops what it did not commit.
    uri = pathlib.Path(file).expanduser().absolute().as_uri() + f"?mode={mode}"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.text_factory = os.fsdecode  # a path need not be UTF-8
            yield connection
    except sqlite3.Error as error:
        raise RunError(f"{file}: {error}") from error


def _read_made_by(connection):
    rows = connection.execute("SELECT name, value FROM made_by")
    return {name: json.loads(value) for name, value in rows}


def update_rows(
    connection: sqlite3.Connection, paths: Sequence[str]
) -> tuple[list[str], int]:
    """Bring the rows up to date with the files.

    A row stays if its file's folder is missing, as on a disk that is not mounted.
    Returns (the paths without a row, the number of vectors that were removed).
    """
    # A file with the path, size and times of a row is not read. Any other file is read
    # if a row has its size, and takes the row of equal bytes: a moved or copied file.
    columns = "rowid, path, size, mtime, ctime, digest"
    rows = connection.execute(f"SELECT {columns} FROM photographs").fetchall()
    rowid_of_file = {}  # by path; by path, size and times; by size and digest
    for rowid, path, size, *times, digest in rows:
        for key in (path, (path, size, *times), (size, digest)):
            rowid_of_file[key] = rowid
    known_sizes = {size for _, _, size, *_ in rows}
    paths_away = []  # in missing folders

    def find_row(path):
        """Find (rowid, None), or for changed columns (rowid, PhotographFile)."""
        try:
            photograph = describe_photograph(path)
            if rowid := rowid_of_file.get(photograph[:4]):  # path, size and times
                return rowid, None
            if photograph.size in known_sizes:
                _, photograph = read_photograph(path)
        except OSError:
            # "." is the folder of a bare name.
            if path not in rowid_of_file or os.path.isdir(os.path.dirname(path) or "."):
                return None, None
            paths_away.append(path)
            return rowid_of_file[path], None
        return rowid_of_file.get((photograph.size, photograph.digest)), photograph

    with ThreadPool(STAT_THREADS) as pool:
        matches = pool.map(find_row, paths)  # in the order of `paths`
    if paths_away:
        log.warning(
            f"{len(paths_away)} rows stay without their folders, as of {paths_away[0]}"
        )
    unchanged_rowids = {rowid for rowid, file in matches if file is None}
    moved_rows = [(*_as_row(file), rowid) for rowid, file in matches if rowid and file]
    stale_rowids = [(rowid,) for rowid, *_ in rows if rowid not in unchanged_rowids]
    with connection:  # one transaction
        # Rows move at once, because two files may have exchanged their names.
        create = "CREATE TEMP TABLE moved AS SELECT * FROM photographs LIMIT 0"
        connection.execute(create)
        insert = "INSERT INTO moved SELECT CAST(? AS TEXT), ?, ?, ?, ?, vector, map "
        insert += "FROM photographs WHERE rowid = ?"
        connection.executemany(insert, moved_rows)
        connection.executemany("DELETE FROM photographs WHERE rowid = ?", stale_rowids)
        connection.execute("INSERT INTO photographs SELECT * FROM moved")
    rowids = [rowid for rowid, _ in matches]
    new_paths = [path for path, rowid in zip(paths, rowids, strict=True) if not rowid]
    return new_paths, len(rows) - len({*rowids} - {None})  # None: a path without a row


def _as_row(photograph):
    # The path as bytes, because it need not be UTF-8.
    return os.fsencode(photograph.path), *photograph[1:]


def append_rows(
    connection: sqlite3.Connection,
    photographs: Sequence[PhotographFile],
    vector: np.ndarray,
    map: np.ndarray | None = None,
) -> None:
    """Append a batch's rows in one transaction; `vector` and `map`: [rows, ..]."""
    maps = [None] * len(vector) if map is None else map
    rows = []
    for photograph, vector_row, map_row in zip(photographs, vector, maps, strict=True):
        map_bytes = None if map_row is None else map_row.tobytes()
        rows.append((*_as_row(photograph), vector_row.tobytes(), map_bytes))
    insert = "INSERT INTO photographs VALUES (CAST(? AS TEXT), ?, ?, ?, ?, ?, ?)"
    with connection:
        connection.executemany(insert, rows)


def read_features(file: str | os.PathLike) -> tuple[list[str], np.ndarray]:
    """Read a file of `imagepiece features`: (paths, vectors [n, D]), ordered by path.

    Raises RunError for any other file, and while a process writes the file.
    """
    with _connect(file, "rw") as connection:
        vector_shape = _read_made_by(connection)["vector"]
        query = "SELECT path, vector FROM photographs ORDER BY path"
        paths = []
        buffer = bytearray()  # row by row: a list of all rows would take as much again
        for path, vector in connection.execute(query):
            paths.append(path)
            buffer += vector
    return paths, np.ndarray((len(paths), *vector_shape), DTYPES["vector"], buffer)
