"""JSON, atomic writes, locks between processes, and the git revision of the code."""

import contextlib
import errno
import json
import logging
import os
import pathlib
import shutil
import stat
import subprocess
import uuid

import filelock

from imagepiece_jax.common import signals
from imagepiece_jax.errors import InputError, RunError

PACKAGE = pathlib.Path(__file__).resolve().parent.parent

LOCK = ".lock"  # the file by which a folder is locked

log = logging.getLogger("imagepiece_jax.files")


class FolderLock(contextlib.AbstractContextManager):
    """A context that keeps other processes from a folder, by the file `LOCK` in it.

    It makes the folder. Folders that it made are removed at the end, and by a signal
    that ends the process, if they are empty. The system unlocks the file of a killed
    process. A file system without locks (some mounts of Lustre and NFS) is a warning: a
    run there is better than none.

    name: of the folder, in sentences, such as "out"
    Raises InputError, when entered, where another process has locked it, or it cannot
    be created or written.
    """

    def __init__(self, name, folder):
        self._name = name
        self._folder = pathlib.Path(folder)
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        check_folder(self._name, self._folder)
        paths = (self._folder, *self._folder.parents)
        made = [path for path in paths if not os.path.exists(path)]
        os.makedirs(self._folder, exist_ok=True)
        file = self._folder / LOCK
        lock = filelock.FileLock(file, blocking=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise InputError(
                f"{self._name} {self._folder} is in use by another process"
            ) from error
        except OSError as error:
            log.warning(
                "%s cannot be locked (%s): two processes that write into it would not "
                "notice each other",
                self._folder,
                error.strerror,
            )
        self._place = self._folder.stat()
        self._stack.callback(lock.release)
        self._stack.callback(self._clear, made)
        self._stack.enter_context(signals.unfinished(file))
        self._stack.enter_context(signals.new_folders(made))
        return self

    def is_there(self) -> bool:
        """Whether the locked folder is in its place: not moved, removed or unmounted.

        New files would else be in another folder, or in the removed one.
        """
        try:
            return os.path.samestat(self._place, self._folder.stat())
        except OSError:
            return False

    def __exit__(self, *error):
        self._stack.close()

    def _clear(self, made):
        """Remove the file, while it is locked, and new folders without files."""
        with contextlib.suppress(OSError):
            if self.is_there():
                (self._folder / LOCK).unlink()
                for path in made:
                    path.rmdir()  # fails, and ends the loop, where files are in it


def read_json(path):
    """The object in a JSON file, a dict."""
    text = pathlib.Path(path).read_bytes()
    try:
        content = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def write_json(path, value):
    """Write a JSON value for people to read. Raises RunError as `replace_file`."""
    replace_file(path, json.dumps(value, indent=2) + "\n")


def check_folder(name, path):
    """Check that the folder `path` can be made and written, and make nothing.

    name: of the folder, in sentences, such as "out"
    """
    nearest = pathlib.Path(path).absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{name} {path} cannot be written: nothing can in {nearest}")


def check_own(name, path, of, ours):
    """Check that a folder holds files of one kind alone.

    name: of the folder, in sentences, such as "out"
    path: nothing may be there yet
    of: what the kind is of, in words, such as "an earlier call"
    ours: whether a file in it, a pathlib.Path, is of the kind; what a killed process
        left unfinished counts for nothing
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        return
    for file in sorted(folder.iterdir()):
        if file.suffix != ".tmp" and not ours(file):
            raise InputError(
                f"{name} {folder} holds {file.name}; it must be a new or empty folder, "
                f"or one of {of}"
            )


def check_room(name, path, size: int):
    """Check that the disk of `path` has `size` free bytes.

    name: of the folder, in sentences, such as "out"
    """
    nearest = pathlib.Path(path).absolute()
    while not nearest.exists():
        nearest = nearest.parent
    free = shutil.disk_usage(nearest).free
    if free < size:
        needed = f"{size / 1e6:,.0f} MB of free disk"
        raise InputError(f"{name} {path} needs {needed}, and has {free / 1e6:,.0f} MB")


def check_writable(name, path, endings, read=()):
    """Check, before the work is done, that its result can be written.

    name: of the file, in sentences, such as "json"
    endings: of names of earlier results, which may be replaced; "" is none; None: the
        caller has checked what is there
    read: files that the command reads, which would be lost
    """
    for source in read:
        both_exist = os.path.exists(path) and os.path.exists(source)
        if both_exist and os.path.samefile(path, source):
            raise InputError(f"{name} {path} is read by this command; choose another")
    ending = pathlib.Path(path).suffix.lower()
    if endings is not None and os.path.isfile(path) and ending not in endings:
        replaced = " and ".join(filter(None, endings))
        raise InputError(
            f"{name} {path} already exists, and only {replaced} files are replaced"
        )
    try:
        new = _temporary(_target(path))
        with signals.unfinished(new):
            new.touch()
            new.unlink()
    except OSError as error:
        raise InputError(
            f"{name} {path} cannot be written ({error.strerror})"
        ) from error


def replace_file(path, content):
    """Write a whole file of text or bytes, or nothing.

    Text is written as UTF-8, with backslash escapes for file names that are not UTF-8.
    Raises RunError where it cannot be written.
    """
    if isinstance(content, str):
        # Escapes stand for what is not UTF-8 in the names of files.
        content = content.encode(errors="backslashreplace")
    with replacing(path) as new:
        new.write_bytes(content)


@contextlib.contextmanager
def replacing(path):
    """A path to write that takes the place of `path` at the end, if nothing raises.

    A kill leaves the old file or the new one. What a symbolic link points to is
    replaced, not the link. A file that is replaced keeps its permissions; those of a
    new one are the umask's.
    Raises RunError where it cannot be written.
    """
    try:
        target = _target(path)
        new = _temporary(target)
        try:
            with signals.unfinished(new):
                new.touch()
                like = target if target.exists() else new
                mode = like.stat().st_mode
                yield new
                _finish(new, stat.S_IMODE(mode))
                os.replace(new, target)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink()
            raise
    except OSError as error:
        raise _not_written(path, error, "run the same command again") from error


@contextlib.contextmanager
def replacing_folder(path):
    """A new folder to fill that becomes `path` at the end, if nothing raises.

    An existing folder is replaced at once; for a symbolic link, the one that it points
    to. Between two renames the old one has a name in the same place that starts with a
    dot. It stays there after a kill, and where it can be neither replaced nor
    put back: it is removed only once the new one is in its place. A folder that someone
    else has made in the meantime is not replaced. The umask decides who may read it.
    Raises RunError where it cannot be written.
    """
    try:
        target = pathlib.Path(os.path.realpath(path))
        new = _temporary(target)
        old = _temporary(target)
        replaces = target.exists()
        with contextlib.ExitStack() as stack:
            stack.enter_context(signals.unfinished(new))
            try:
                new.mkdir(parents=True)
                mode = new.stat().st_mode & 0o666  # a file's: who may read it
                yield new
                for file in new.iterdir():
                    _finish(file, mode)
                stack.enter_context(signals.finishing())
                if replaces:
                    os.replace(target, old)
                os.replace(new, target)
            except BaseException:
                if replaces:
                    _put_back(old, target)
                shutil.rmtree(new, ignore_errors=True)
                raise
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _not_written(path, error, "try again") from error


def _finish(file, mode):
    """Write a file of a library to the disk, with these permissions.

    Some libraries choose their own: safetensors 0.8 leaves 0600.
    """
    os.chmod(file, mode)
    with open(file, "rb") as written:
        os.fsync(written.fileno())


def _not_written(path, error, then):
    """The RunError for a file or folder that the system refuses to write."""
    reason = error.strerror or error
    return RunError(f"{path} cannot be written ({reason}); fix this, and {then}")


def _put_back(old, target):
    """Rename `old`, if it is there, to `target`; a warning where it has to stay."""
    try:
        os.rename(old, target)
    except FileNotFoundError:
        pass  # it was not moved
    except OSError as error:
        log.warning(
            "what was in %s is now in %s: it cannot be put back (%s)",
            target,
            old,
            error.strerror,
        )


def append_line(file, text):
    """Append one line to `file`, open for unbuffered binary appending; or nothing.

    Raises RunError where it cannot be written whole (a full disk), and removes what was
    written of it.
    """
    before = os.fstat(file.fileno()).st_size
    data = memoryview((text + "\n").encode())
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        os.ftruncate(file.fileno(), before)
        then = "run the same command again, which resumes from what is there"
        raise _not_written(file.name, error, then) from error


def git_revision():
    """Commit of the running code, with "-dirty" after it where files were changed.

    None where the code is not tracked by git, as in an installed package: even inside
    another repository, whose revision would say nothing about this code.
    """
    tracked = _git("ls-files", "--error-unmatch", "errors.py")
    if tracked is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*words):
    """What a git command in the package's folder prints; None where it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *words], capture_output=True, text=True
        )
    except OSError:  # git is not installed
        return None
    if done.returncode:
        return None
    return done.stdout.strip()


def _target(path):
    """The file behind `path`; OSError for a folder, a device, a pipe or a socket."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "Is a device or a pipe")
    return pathlib.Path(os.path.realpath(path))


def _temporary(path):
    """A new path in the folder of `path`: several processes may write at once."""
    return path.with_name(f".{uuid.uuid4().hex}.tmp")
