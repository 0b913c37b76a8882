"""FileRecords: the image files that feature rows were computed from."""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from imagepiece_jax.common.files import open_regular_file
from imagepiece_jax.data.source import FileSource, StoredImage

UNKNOWN_STATUS = (-1, -1, -1)  # size, mtime and ctime of a file without a status


class FileRecord(NamedTuple):
    """An image file at the time it was read."""

    path: str  # absolute; the folder's symbolic links are resolved
    size: int  # bytes
    mtime: int  # nanoseconds
    ctime: int  # nanoseconds; changes even if a copy keeps size and mtime
    digest: str = ""  # hash of the bytes; "": not read
    reason: str | None = None  # why the file has no features

    @property
    def file_state(self) -> tuple[str, int, int, int]:
        """Path, size and times: known without reading the file."""
        return self[:4]

    @property
    def content(self) -> tuple[int, str]:
        """Size and digest: equal for files with equal bytes."""
        return self.size, self.digest

    @classmethod
    def parse_line(cls, line: bytes) -> Self:
        """Parse a line of JSON."""
        try:
            record = cls(*json.loads(line))
            hash(record)  # a list among the fields raises TypeError
        except (TypeError, ValueError):
            # Somebody edited the line. This record matches no file.
            return cls("", *UNKNOWN_STATUS)
        return record


def record_unread_file(path: str) -> FileRecord:
    """Record a file without reading it, so without its digest. Raises OSError."""
    status = os.stat(path)
    folder, name = os.path.split(path)
    path = os.path.join(_real_path(folder), name)
    return FileRecord(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


_real_path = functools.lru_cache(maxsize=1000)(os.path.realpath)


def read_and_record(path: str) -> tuple[bytes, FileRecord]:
    """Read a regular file: (bytes, record). Raises OSError."""
    # The times are taken first, so that a write during the read shows as a change.
    record = record_unread_file(path)
    with open_regular_file(path) as file:
        file_bytes = file.read()
    digest = hashlib.blake2b(file_bytes, digest_size=16).hexdigest()
    return file_bytes, record._replace(size=len(file_bytes), digest=digest)


class RecordedFiles(FileSource):
    """Upright image files without labels; reading a file keeps its FileRecord.

    Subsets share `records`.
    """

    def __init__(self, files: Sequence[str]) -> None:
        super().__init__("", files, np.full(len(files), -1))
        self.records: dict[int, FileRecord] = {}  # files read so far, by store index

    def stored_image(self, store_index: int) -> StoredImage:
        """Read and record a file: (bytes, or the path if unreadable; label; path)."""
        _, label, path = super().stored_image(store_index)
        try:
            file_bytes, record = read_and_record(path)
        except OSError:  # `decode` meets the error again and says the reason
            record = FileRecord(os.path.abspath(path), *UNKNOWN_STATUS)
            self.records[store_index] = record
            return path, label, path
        self.records[store_index] = record
        return file_bytes, label, path

    def image_name(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.files[self.indices[index]]))
