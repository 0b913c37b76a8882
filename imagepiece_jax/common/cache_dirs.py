"""Cache folders for compiled code."""

import errno
import os
import pathlib
import platform
import zlib


def cache_folder(name: str) -> pathlib.Path:
    """Cache folder for one kind of compiled code, below $XDG_CACHE_HOME or ~/.cache.

    Raises OSError if there is neither.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification: ignore a relative path
        base = os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        raise FileNotFoundError(errno.ENOENT, "there is no home folder")
    return pathlib.Path(base) / "imagepiece_jax" / name


def processor_features() -> str:
    """Describe the kind of processor. Native code may crash on another kind."""
    info = pathlib.Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    kinds = ("flags", "Features", "model name")
    lines = info.read_text().splitlines()
    lines = {line for line in lines if line.startswith(kinds)}
    return "\n".join(sorted(lines)) or platform.processor()


def keep_compiled_programs() -> tuple[pathlib.Path | None, bool]:
    """Make JAX, not yet imported, keep its compiled programs on disk.

    Returns (folder, whether it is new), or (None, False) if the environment sets
        JAX_COMPILATION_CACHE_DIR or JAX_ENABLE_COMPILATION_CACHE, or if the folder
        cannot be created or written.
    """
    variable = "JAX_COMPILATION_CACHE_DIR"
    if variable in os.environ or "JAX_ENABLE_COMPILATION_CACHE" in os.environ:
        return None, False
    # One folder per kind of processor: machines may share a home folder, and JAX's file
    # names do not tell processors apart.
    processor_hash = zlib.crc32(processor_features().encode())
    try:
        programs = cache_folder("programs") / f"{processor_hash:08x}"
        is_new = not programs.exists()
        programs.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None, False
    if not os.access(programs, os.W_OK | os.X_OK):
        return None, False
    os.environ[variable] = str(programs)
    return programs, is_new
