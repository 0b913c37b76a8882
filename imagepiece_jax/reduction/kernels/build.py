"""Compiled kernel libraries, found in a cache or built at first use.

A library's name is a hash of all that goes into it; processes may build one at once.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile

import jax

from imagepiece_jax.common import cache_dirs, signals

SOURCES = pathlib.Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-shared")
TIME_LIMIT = 600  # seconds that a compiler may take


@functools.cache
def library(device, capability=None):
    """Compiled kernels of "cpu" or "cuda"; the first call may compile for ten seconds.

    capability: of the GPU, such as "9.0"
    Returns a ctypes.CDLL, or, as a str, what is missing.
    """
    if device == "cpu":
        compilers = host_compilers()
        wanted = "a C++ compiler (g++ or clang++)"
    else:
        compilers = cuda_compilers()
        wanted = "nvcc"
    if not compilers:
        return f"{wanted}, and there is none"
    for compiler in compilers:
        command, source = command_and_source(device, compiler, capability)
        result = _built(command, source)
        if not isinstance(result, str):
            break
    return result


def command_and_source(device, compiler, capability):
    """(command without its output, main source) of a library."""
    headers = f"-I{jax.ffi.include_dir()}"
    if device == "cpu":
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        processor = "-march=native" if x86 else "-mcpu=native"
        command = [compiler, *FLAGS, "-fPIC", processor, headers]
        return command, SOURCES / "reduce_cpu.cc"
    number = capability.replace(".", "")
    processor = f"-gencode=arch=compute_{number},code=sm_{number}"
    flags = ["-Xcompiler", "-fPIC", processor]
    for folder in _library_folders(compiler):
        flags.append(f"-L{folder}")
    return [compiler, *FLAGS, *flags, headers], SOURCES / "reduce_cuda.cu"


def host_compilers():
    """C++ compilers at hand, the preferred first."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return _unique(shutil.which(name) for name in names if name)


def cuda_compilers():
    """The nvcc of PATH, of $CUDA_HOME, and of JAX's CUDA wheels."""
    paths = [shutil.which("nvcc")]
    home = os.environ.get("CUDA_HOME")
    if home:
        paths.append(shutil.which("nvcc", path=os.path.join(home, "bin")))
    wheels = importlib.util.find_spec("nvidia")
    folders = wheels.submodule_search_locations if wheels else ()
    for folder in folders:
        for path in sorted(pathlib.Path(folder).glob("*/bin/nvcc")):
            paths.append(shutil.which(str(path)))
    return _unique(paths)


def _library_folders(nvcc):
    """Folders of the CUDA runtime; the wheels' compiler does not look into its own."""
    root = pathlib.Path(nvcc).resolve().parent.parent
    return [folder for folder in (root / "lib64", root / "lib") if folder.is_dir()]


def _unique(paths):
    return list(dict.fromkeys(path for path in paths if path))


def _built(command, source):
    """The library that `command` makes of `source`, as a ctypes.CDLL.

    Where that fails, what `library` then says is missing.
    """
    folder = "~/.cache"
    try:
        folder = cache_dirs.folder("kernels")
        path = folder / f"{source.stem}-{_fingerprint(command)}.so"
        cache_dirs.check_owner(path)
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            made = tempfile.TemporaryDirectory(dir=folder)
            with made, signals.unfinished(made.name):
                new = pathlib.Path(made.name) / path.name
                done = subprocess.run(
                    [*command, str(source), "-o", str(new)],
                    capture_output=True,
                    text=True,
                    timeout=TIME_LIMIT,
                )
                if done.returncode:
                    return f"what {command[0]} could build: {_complaint(done)}"
                os.replace(new, path)  # atomic: others may build it too
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = "it takes too long"
        if isinstance(error, OSError):
            reason = error.strerror or error
        return (
            f"a library built in {folder}, a folder that XDG_CACHE_HOME can "
            f"move ({reason})"
        )


def _complaint(done):
    """The first line of a compiler's output that names an error."""
    lines = (done.stderr + done.stdout).splitlines() or [f"status {done.returncode}"]
    return next((line for line in lines if "error" in line), lines[-1]).strip()


def _fingerprint(command):
    """Hash of the sources, the command, its compiler, JAX and the processor."""
    compiler = pathlib.Path(command[0]).resolve()
    modified = compiler.stat().st_mtime_ns
    parts = [*command, jax.__version__, str(compiler), str(modified)]
    parts.append(cache_dirs.processor())
    for file in sorted(SOURCES.glob("*")):
        if file.suffix in (".h", ".cc", ".cu"):
            parts += [file.name, file.read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
