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
    cache_home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache_home):  # the XDG specification: ignore a relative path
        cache_home = os.path.expanduser("~/.cache")
    if not os.path.isabs(cache_home):
        raise FileNotFoundError(errno.ENOENT, "there is no home folder")
    return pathlib.Path(cache_home) / "imagepiece_jax" / name


def processor_features() -> str:
    """Describe the kind of processor. Native code may crash on another kind."""
    cpu_file = pathlib.Path("/proc/cpuinfo")
    if not cpu_file.exists():
        return platform.processor()
    line_starts = ("flags", "Features", "model name")
    cpu_lines = cpu_file.read_text().splitlines()
    feature_lines = {line for line in cpu_lines if line.startswith(line_starts)}
    return "\n".join(sorted(feature_lines)) or platform.processor()


def keep_compiled_programs() -> tuple[pathlib.Path | None, bool]:
    """Make JAX, not yet imported, keep its compiled programs on disk.

    Returns (folder, whether it is new), or (None, False) if the environment sets
        JAX_COMPILATION_CACHE_DIR or JAX_ENABLE_COMPILATION_CACHE, or if the folder
        cannot be created or written.
    """
    folder_variable = "JAX_COMPILATION_CACHE_DIR"
    if folder_variable in os.environ or "JAX_ENABLE_COMPILATION_CACHE" in os.environ:
        return None, False
    # One folder per kind of processor: machines may share a home folder, and JAX's file
    # names do not tell processors apart.
    processor_hash = zlib.crc32(processor_features().encode())
    try:
        programs_folder = cache_folder("programs") / f"{processor_hash:08x}"
        is_new = not programs_folder.exists()
        programs_folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None, False
    if not os.access(programs_folder, os.W_OK | os.X_OK):
        return None, False
    os.environ[folder_variable] = str(programs_folder)
    return programs_folder, is_new
