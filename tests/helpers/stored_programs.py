"""The tests' compiled programs, kept in a folder for the next run.

Compiling takes half of the tests' processor time, and reading a program an eighth of
compiling it. JAX names a program by its operations, its options and its own version.
"""

import functools
import os
import pathlib
import threading
import zlib

from jax._src import compilation_cache, lru_cache

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "build" / "programs"


def _put_whole(self, key, value):
    part = self.path / f"{key}-{os.getpid()}-{threading.get_ident()}"
    try:
        part.write_bytes(value)
        os.replace(part, self.path / f"{key}-cache")
    except OSError:  # a test fills the disk or removes the folder
        part.unlink(missing_ok=True)


def write_whole():
    """Let JAX write programs whole and lightly compressed.

    JAX writes in place, so another process may read half a program, and it warns where
    it cannot write. Its compression is smaller by a fifth, and takes three times as
    long.
    """
    lru_cache.LRUCache.put = _put_whole
    compilation_cache.compress_executable = functools.partial(zlib.compress, level=1)
    compilation_cache.decompress_executable = zlib.decompress
