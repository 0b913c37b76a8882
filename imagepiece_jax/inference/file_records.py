"""What a row of features was computed from: a record of each image file."""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from imagepiece_jax.common.files import open_regular
from imagepiece_jax.data.source import FileSource


class FileRecord(NamedTuple):
    """An image file as it was when it was read."""

    path: str  # absolute, by the real path of its folder
    size: int  # bytes
    mtime: int  # nanoseconds
    ctime: int  # nanoseconds; it changes where a copy keeps size and mtime, too
    digest: str = ""  # hash of the bytes; "": they were not read
    reason: str | None = None  # why it has no features

    @property
    def seen(self) -> tuple[str, int, int, int]:
        """What shows without reading the file."""
        return self[:4]

    @property
    def content(self) -> tuple[int, str]:
        """What is equal for files of equal bytes."""
        return self.size, self.digest

    @classmethod
    def of_line(cls, line: bytes) -> "FileRecord":
        """The record in a line of JSON; that of no file in a line that was edited."""
        try:
            record = cls(*json.loads(line))
            hash(record)
        except (TypeError, ValueError):
            return cls("", -1, -1, -1)
        return record


def look_at(path: str) -> FileRecord:
    """The record of a file without its digest. Raises OSError."""
    status = os.stat(path)
    folder, name = os.path.split(path)
    path = os.path.join(_real_path(folder), name)
    return FileRecord(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


_real_path = functools.lru_cache(maxsize=1000)(os.path.realpath)


def read(path: str) -> tuple[bytes, FileRecord]:
    """The bytes of a regular file, and its record. Raises OSError."""
    record = look_at(path)  # first: what is written meanwhile has a later time
    with open_regular(path) as file:
        data = file.read()
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return data, record._replace(size=len(data), digest=digest)


class RecordedFiles(FileSource):
    """Image files without labels, upright, whose records are kept as they are read.

    records: {place: record} of the files that were read, also by parts of the source
    """

    def __init__(self, files: Sequence[str]):
        super().__init__("", files, np.full(len(files), -1))
        self.records = {}

    def stored(self, place):
        path, label, name = super().stored(place)
        try:
            path, self.records[place] = read(path)
        except OSError:  # `decode` finds the reason
            self.records[place] = FileRecord(os.path.abspath(path), -1, -1, -1)
        return path, label, name

    def name(self, index):
        return os.path.join(self.root, os.fsdecode(self.files[self.indices[index]]))
