"""JSON, atomic writes, locks between processes, and the code's git revision."""

import codecs
import contextlib
import ctypes
import errno
import functools
import io
import json
import logging
import os
import pathlib
import shutil
import stat
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, BinaryIO

import filelock

from imagepiece_jax.common import signals
from imagepiece_jax.errors import InputError, RunError

PACKAGE_FOLDER = pathlib.Path(__file__).resolve().parent.parent

# Errors of a call that some mounts (SMB, FUSE, object stores) do not have.
UNSUPPORTED_ERRORS = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
UNSUPPORTED_ERRORS += (errno.EPERM, errno.EACCES)
# Names, in lower case, that systems and NAS put beside files, hidden files apart.
SYSTEM_NAMES = {"@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"}
SYSTEM_NAMES |= {"__macosx", "lost+found", "$recycle.bin", "recycler", "thumbs.db"}
SYSTEM_NAMES |= {"system volume information", "desktop.ini", ".ds_store"}
SYSTEM_NAMES |= {"network trash folder", "temporary items", "@tmp", "@sharebin"}
LOCK_NAME = ".lock"  # name of a folder's lock file

log = logging.getLogger("imagepiece_jax.files")


@contextlib.contextmanager
def locked_folder(name: str, folder: str | os.PathLike) -> Iterator[None]:
    """Create a folder and lock it against other processes, by its file `LOCK_NAME`.

    New folders are removed at the end if they are empty.

    name: the folder's name in messages, such as "out"
    Raises InputError if another process holds the lock.
    """
    folder = pathlib.Path(folder)
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    # The operating system unlocks the file of a killed process.
    lock = filelock.FileLock(folder / LOCK_NAME, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(f"{name} {folder} is in use by another process") from error
    except OSError as error:
        # Some mounts of Lustre and NFS have no locks. A run there is better than none.
        log.warning(
            "%s cannot be locked (%s): two processes that write into it would not "
            "notice each other",
            folder,
            error.strerror,
        )
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(signals.unfinished_path(folder / LOCK_NAME))
            for path in new_folders:
                stack.enter_context(signals.unfinished_path(path, if_empty=True))
            yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK_NAME).unlink()
            for path in new_folders:
                path.rmdir()  # fails, and ends the loop, where files are in it
        lock.release()


def open_regular_file(path: str | os.PathLike) -> BinaryIO:
    """Open a file to read bytes. A pipe might never end: it raises OSError."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # open() reports a folder
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    return open(path, "rb")


def read_text(path: str | os.PathLike, errors: str = "strict") -> str:
    """Read text in UTF-8, or in UTF-16 with a byte order mark.

    errors: as in `bytes.decode`
    """
    with open_regular_file(path) as file:
        encoded_text = file.read()
    is_utf16 = encoded_text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return encoded_text.decode("utf-16" if is_utf16 else "utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 or UTF-16 ({error})") from error


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON object from a file, as a dict."""
    encoded_text = pathlib.Path(path).read_bytes()
    try:
        content = json.loads(encoded_text.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write an indented JSON file. Raises RunError like `replace_file`."""
    # NaN and infinity, which JSON lacks, become null.
    finite_value = json.loads(json.dumps(value), parse_constant=lambda _: None)
    replace_file(path, json.dumps(finite_value, indent=2) + "\n")


def check_own_files(
    name: str,
    path: str | os.PathLike,
    owner: str,
    is_own: Callable[[pathlib.Path], Any],
) -> None:
    """Check that a folder, if it exists, holds only files of one kind.

    name: the folder's name in messages, such as "out"
    owner: source of such files in messages, such as "an earlier call"
    is_own: whether a path in the folder is such a file
    """
    folder = pathlib.Path(path)
    if not folder.exists():
        return
    for file in sorted(folder.iterdir()):
        # A killed process may have left unfinished files and its lock.
        is_unfinished = file.name.startswith(".") and file.suffix == ".tmp"
        if is_unfinished or file.name.lower() in {LOCK_NAME, *SYSTEM_NAMES}:
            continue
        if not is_own(file):
            raise InputError(
                f"{name} {folder} holds {file.name}; it must be new, be empty, or hold "
                f"only files of {owner}"
            )


def check_writable(
    name: str,
    path: str | os.PathLike,
    endings: Collection[str],
    inputs: Iterable[str | os.PathLike] = (),
) -> None:
    """Check, before the work starts, that its result can be written.

    name: the file's name in messages, such as "json"
    endings: allowed endings, such as ".json", so that no image is replaced
    inputs: the command's input files, which must not be replaced
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in endings:
        raise InputError(f"{name} is {path}; it must end in {' or '.join(endings)}")
    for input_file in inputs:
        if path.exists() and os.path.exists(input_file) and path.samefile(input_file):
            raise InputError(f"{name} {path} is an input of this command")
    if path.is_dir():
        raise InputError(f"{name} {path} cannot be written: it is a folder")
    if not path.parent.is_dir():
        raise InputError(f"{name} {path} cannot be written: its folder is missing")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{name} {path} cannot be written")


def replace_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a whole file of text or bytes, or nothing.

    Raises RunError if the file cannot be written.
    """
    if isinstance(content, str):
        # File names in the text may not be UTF-8: they become backslash escapes.
        content = content.encode(errors="backslashreplace")
    with replacement_file(path) as new_path:
        new_path.write_bytes(content)


@contextlib.contextmanager
def replacement_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a temporary path to write; at the end it replaces `path`.

    The file at `path` stays if anything raises, or is replaced whole: a kill leaves the
    old file or the new file. The umask sets its permissions.
    Raises RunError if the file cannot be written.
    """
    new_path = _temporary_path(path)
    try:
        with signals.unfinished_path(new_path):
            new_path.touch()
            mode = new_path.stat().st_mode  # the umask's; a library may change it
            yield new_path
            _finish_file(new_path, mode)
            os.replace(new_path, path)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            new_path.unlink()


@contextlib.contextmanager
def replacement_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a new folder to fill with files; at the end it replaces `path`.

    The folder at `path` stays if anything raises. The umask sets the files'
    permissions.
    Raises RunError if the folder cannot be written.
    """
    # Through a symbolic link, the folder it points to is replaced.
    target = pathlib.Path(os.path.realpath(path))
    new_folder = _temporary_path(target)
    old_folder = _temporary_path(target)
    try:
        with signals.unfinished_path(new_folder):
            new_folder.mkdir(parents=True)
            mode = new_folder.stat().st_mode & 0o666  # a file's bits, without execution
            yield new_folder
            for file in new_folder.iterdir():
                _finish_file(file, mode)
            with signals.deferred_signals():
                if not _exchange_folders(new_folder, target):
                    if target.exists():
                        # A kill between the two renames leaves the old folder in the
                        # same place, under a name that starts with a dot.
                        os.rename(target, old_folder)
                    os.rename(new_folder, target)
                    shutil.rmtree(old_folder, ignore_errors=True)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        if old_folder.exists() and not target.exists():
            os.rename(old_folder, target)
        shutil.rmtree(new_folder, ignore_errors=True)


def _exchange_folders(folder: str | os.PathLike, target: str | os.PathLike) -> bool:
    """Exchange two folders in one step; False if one is missing or no call does it."""
    # Linux's call, which Python lacks. `ctypes.CDLL(None)` fails on Windows.
    rename_call = getattr(ctypes.pythonapi, "renameat2", None)
    arguments = (-100, os.fsencode(folder), -100, os.fsencode(target))  # AT_FDCWD
    exchange_flag = 2  # RENAME_EXCHANGE
    return rename_call is not None and rename_call(*arguments, exchange_flag) == 0


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """Yield a new folder; its end, or a signal that ends the command, removes it.

    Temporary files of libraries are in it, too.
    """
    previous_folder = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder, signals.unfinished_path(folder):
        tempfile.tempdir = folder
        try:
            yield folder
        finally:
            tempfile.tempdir = previous_folder


def _finish_file(file: pathlib.Path, mode: int) -> None:
    """Set a file's permissions and flush it to the disk."""
    with ignore_unsupported():
        # Some libraries choose their own permissions: safetensors 0.8 leaves 0600.
        os.chmod(file, mode)
    with open(file, "rb") as opened_file, ignore_unsupported():
        os.fsync(opened_file.fileno())


@contextlib.contextmanager
def ignore_unsupported() -> Iterator[None]:
    """Ignore that the file system may lack a call, or refuse it to everybody."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED_ERRORS:
            raise


def _write_error(path: str | os.PathLike, error: OSError) -> RunError:
    return RunError(f"{path} cannot be written ({error.strerror or error})")


def append_line(file: io.FileIO, line: str) -> None:
    """Append a line to `file`, opened for unbuffered binary appending.

    Raises RunError if the line cannot be written whole, as on a full disk.
    """
    unwritten_bytes = memoryview((line + "\n").encode())
    try:
        while unwritten_bytes:
            unwritten_bytes = unwritten_bytes[file.write(unwritten_bytes) :]
    except OSError as error:
        raise _write_error(file.name, error) from error


def git_revision() -> str | None:
    """Commit of the running code, with "-dirty" if files were changed.

    None if git does not track the code, as in an installed package.
    """
    run_options = {"capture_output": True, "text": True, "cwd": PACKAGE_FOLDER}
    run = functools.partial(subprocess.run, **run_options)
    describe_options = ["--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        tracking_result = run(["git", "ls-files", "--error-unmatch", "errors.py"])
        describe_result = run(["git", "describe", *describe_options])
    except OSError:  # git is not installed
        return None
    # An installed package may lie inside another repository, whose revision would say
    # nothing about this code.
    if tracking_result.returncode:
        return None
    return describe_result.stdout.strip()


def _temporary_path(path: str | os.PathLike) -> pathlib.Path:
    """New path beside `path`, unique because several processes may write at once."""
    return pathlib.Path(path).with_name(f".{uuid.uuid4().hex}.tmp")
