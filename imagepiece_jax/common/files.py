"""JSON, atomic writes, locks between processes, and the code's git revision."""

import codecs
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import filelock

from imagepiece_jax.errors import InputError, RunError

PACKAGE_FOLDER = pathlib.Path(__file__).resolve().parent.parent
LOCK_NAME = ".lock"  # name of a folder's lock file
AnyPath = str | os.PathLike


@contextlib.contextmanager
def locked_folder(name: str, folder: AnyPath) -> Iterator[None]:
    """Create a folder and lock it against other processes, by its file `LOCK_NAME`.

    New folders are removed at the end if they are empty. `name` is for the error.
    """
    folder = pathlib.Path(folder)
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    # The operating system unlocks the file of a killed process.
    lock = filelock.FileLock(folder / LOCK_NAME, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(f"{name} {folder} is in use by another process") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK_NAME).unlink()
            for path in new_folders:
                path.rmdir()  # fails, and ends the loop, where files are in it
        lock.release()


def read_text(path: AnyPath, errors: str = "strict") -> str:
    """Read text in UTF-8, or in UTF-16 with a byte order mark."""
    encoded_text = pathlib.Path(path).read_bytes()
    is_utf16 = encoded_text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return encoded_text.decode("utf-16" if is_utf16 else "utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 or UTF-16 ({error})") from error


def read_json(path: AnyPath) -> dict[str, Any]:
    """Read a JSON object from a file, as a dict."""
    encoded_text = pathlib.Path(path).read_bytes()
    try:
        content = json.loads(encoded_text.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def read_json_lines(path: AnyPath) -> list:
    """Read the values in a file of JSON lines; [] without a file.

    A kill, or a full disk, may cut a line inside a character: it is left out.
    """
    values = []
    with contextlib.suppress(FileNotFoundError):
        for line in pathlib.Path(path).read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError):
                values.append(json.loads(line))
    return values


def write_json(path: AnyPath, value: Any) -> None:
    """Write an indented JSON file, as by `replace_file`."""
    # NaN and infinity, which JSON lacks, become null.
    finite_value = json.loads(json.dumps(value), parse_constant=lambda _: None)
    replace_file(path, json.dumps(finite_value, indent=2) + "\n")


def check_own_files(
    name: str, path: AnyPath, owner: str, is_own: Callable[[pathlib.Path], Any]
) -> None:
    """Check that a folder, `name` in the error, has at most files of `owner`."""
    folder = pathlib.Path(path)
    for file in sorted(folder.iterdir()) if folder.exists() else ():
        # A killed process may have left unfinished files and its lock.
        is_unfinished = file.name.startswith(".") and file.suffix == ".tmp"
        if not (is_unfinished or file.name == LOCK_NAME or is_own(file)):
            raise InputError(f"{name} {folder} holds {file.name}, not of {owner}")


def check_writable(
    name: str, path: AnyPath, endings: Collection[str], inputs: Iterable[AnyPath] = ()
) -> None:
    """Check, before the work starts, that its result can be written.

    endings: allowed endings, such as ".json", so that no image is replaced
    inputs: the command's input files, which must not be replaced
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in endings:
        raise InputError(f"{name} is {path}; it must end in {' or '.join(endings)}")
    # `samefile` needs two files that exist.
    input_files = [file for file in inputs if path.exists() and os.path.exists(file)]
    is_input = any(map(path.samefile, input_files))
    is_writable = path.parent.is_dir() and os.access(path.parent, os.W_OK)
    if is_input or path.is_dir() or not is_writable:
        reason = "is an input of this command" if is_input else "cannot be written"
        raise InputError(f"{name} {path} {reason}")


def replace_file(path: AnyPath, content: str | bytes) -> None:
    """Write a whole file of text or bytes, or nothing and raise RunError."""
    if isinstance(content, str):
        # File names in the text may not be UTF-8: they become backslash escapes.
        content = content.encode(errors="backslashreplace")
    with replacement_file(path) as new_path:
        new_path.write_bytes(content)


@contextlib.contextmanager
def replacement_file(path: AnyPath) -> Iterator[pathlib.Path]:
    """Yield a temporary path to write; at the end it replaces `path`.

    The file at `path` stays if anything raises, or is replaced whole: a kill leaves the
    old file or the new file.
    Raises RunError if the file cannot be written.
    """
    new_path = _temporary_path(path)
    try:
        yield new_path
        _flush(new_path)
        os.replace(new_path, path)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        new_path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacement_folder(path: AnyPath) -> Iterator[pathlib.Path]:
    """Yield a new folder to fill with files; at the end it replaces `path`.

    The folder at `path` stays if anything raises, which is RunError for an OSError. The
    umask sets the files' permissions.
    """
    # Through a symbolic link, the folder it points to is replaced.
    target = pathlib.Path(os.path.realpath(path))
    new_folder = _temporary_path(target)
    old_folder = _temporary_path(target)
    try:
        new_folder.mkdir(parents=True)
        mode = new_folder.stat().st_mode & 0o666  # a file's bits, without execution
        yield new_folder
        for file in new_folder.iterdir():
            file.chmod(mode)  # safetensors 0.8 leaves 0600
            _flush(file)
        if target.exists():
            # A kill between the two renames leaves the old folder beside, under a name
            # that starts with a dot.
            os.rename(target, old_folder)
        os.rename(new_folder, target)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        if old_folder.exists() and not target.exists():
            os.rename(old_folder, target)
        shutil.rmtree(old_folder, ignore_errors=True)
        shutil.rmtree(new_folder, ignore_errors=True)


def _flush(path):
    """Write a file to the disk: else a machine that stops leaves it empty."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _write_error(path, error):
    return RunError(f"{path} cannot be written ({error.strerror or error})")


def git_revision() -> str | None:
    """Commit of the running code, with "-dirty" if files were changed.

    None if git does not track the code, as in an installed package.
    """
    options: dict[str, Any] = {"stderr": subprocess.DEVNULL, "cwd": PACKAGE_FOLDER}
    # --exclude: no tag stands in for the commit.
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        # An installed package may lie inside another repository, whose revision would
        # say nothing about this code. Any file of the package shows it.
        find_file = ["git", "ls-files", "--error-unmatch", "errors.py"]
        subprocess.check_output(find_file, **options)
        return subprocess.check_output(describe, **options).decode().strip()
    except (OSError, subprocess.CalledProcessError):  # git may not be installed
        return None


def _temporary_path(path):
    """New path beside `path`, unique because several processes may write at once."""
    return pathlib.Path(path).with_name(f".{uuid.uuid4().hex}.tmp")
