"""The tests' compiled programs, kept in a folder for the next run.

Compiling takes half of the tests' processor time, and reading a program an eighth of
compiling it. JAX names a program by its operations, its options and its own version.
"""

import functools
import os
import pathlib
import shutil
import threading
import zlib

import jax
from jax._src import compilation_cache

MAX_BYTES = 2_000_000_000  # in the folder: every change of a model makes programs


class Programs:
    """JAX's interface to a folder of programs, which several processes may share.

    JAX's own cache writes in place, so another process may read half a program, and it
    warns where it cannot write. Here a program is whole, or it is compiled.
    """

    def __init__(self, folder):
        self._path = pathlib.Path(folder)
        self._path.mkdir(parents=True, exist_ok=True)

    def get(self, key):
        try:
            return self._file(key).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, key, value):
        part = self._path / f"{key}-{os.getpid()}-{threading.get_ident()}"
        try:
            part.write_bytes(value)
            os.replace(part, self._file(key))
        except OSError:  # a test fills the disk or removes the folder
            part.unlink(missing_ok=True)

    def _file(self, key):
        return self._path / f"{key}-cache"


def write_whole():
    """Let this process read and write its folder by `Programs`, lightly compressed.

    JAX's compression is smaller by a fifth, and takes three times as long.
    """
    compilation_cache.compress_executable = functools.partial(zlib.compress, level=1)
    compilation_cache.decompress_executable = zlib.decompress
    compilation_cache.get_file_cache = lambda path: (Programs(path), path)


def keep(root):
    """Write this process's programs to a folder, and read them from it."""
    write_whole()
    jax.config.update("jax_compilation_cache_dir", root)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def shared_folder(alone):
    """The folder for programs of a test's forked processes.

    It links to the folder of all tests; without one, it is `alone`, the test's own.
    """
    root = os.environ["TESTS_PROGRAMS"]
    if root and not alone.exists():
        pathlib.Path(root).mkdir(parents=True, exist_ok=True)
        alone.symlink_to(root)
    return alone


def remove_large_folder(root):
    """Remove the folder if it has become too large."""
    total = 0
    for file in pathlib.Path(root).rglob("*"):
        if file.is_file():
            total += file.stat().st_size
    if total > MAX_BYTES:
        shutil.rmtree(root)
