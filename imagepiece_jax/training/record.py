"""Which run lives in this folder? Its config, and what code and versions ran it.

`config.json` is the whole config; a folder belongs to one config, apart from the fields
that may change when a run goes on. `run.json` has one entry for each time it was
started.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import subprocess

from imagepiece_jax.errors import InputError, RunError

CONFIG = "config.json"
RUN = "run.json"
LOCK = ".lock"
PACKAGE = pathlib.Path(__file__).resolve().parent.parent


def record_run(
    workdir, config_dict, may_change=(), extra=None, is_main=True, assumed=None
):
    """Write `workdir/config.json` and add this start to `workdir/run.json`.

    `config_dict` is a nested dict of JSON values (tuples count as lists). Where the
    folder already holds a config, it must be equal in every field but those in
    `may_change`: dotted names, a group's name standing for all of its fields. 1, 1.0
    and True are three different values. The new config then replaces the old one.
    `assumed` has the values of dotted names that an older config may lack.

    `extra` (library versions, devices, ...) is kept with the git revision of the code,
    which is null outside a git repository. Processes other than the main one compare
    but write nothing.

    Raises InputError naming the first field that differs, both values, and the ways
    out.
    """
    workdir = pathlib.Path(workdir)
    text = json.dumps(config_dict, indent=2)
    if (workdir / CONFIG).exists():
        old = _flat(_read(workdir / CONFIG))
        for name, value in (assumed or {}).items():
            if old.get(name, "null") == "null":
                old[name] = json.dumps(value)
        _compare(workdir, old, _flat(json.loads(text)), may_change)
    if not is_main:
        return
    starts = _read(workdir / RUN)["starts"] if (workdir / RUN).exists() else []
    starts.append({"git": git_revision(), **(extra or {})})
    _make(workdir)
    replace_file(workdir / RUN, json.dumps({"starts": starts}, indent=2) + "\n")
    replace_file(workdir / CONFIG, text + "\n")


def lock(file, busy):
    """Keep other processes from locking an open file until it is closed.

    Where one has it already the file is closed: InputError, whose sentence is `busy`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise InputError(busy) from error


class Hold:
    """Keeps other processes out of `workdir` until it is closed.

    InputError where one is at work there, or the folder cannot be made or written.
    """

    def __init__(self, workdir):
        self._path = pathlib.Path(workdir) / LOCK
        _make(self._path.parent)
        try:
            self._file = open(self._path, "w", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"--workdir {workdir} cannot be written ({error.strerror}): choose "
                "another"
            ) from error
        lock(
            self._file,
            f"another process is training in {workdir}: wait for it, or choose another "
            "--workdir",
        )

    def check(self):
        """RunError if the folder is no longer where it was: moved, removed, unmounted.

        What is written then would start a new folder, or end up in the removed one.
        """
        try:
            same = os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except OSError:
            same = False
        if not same:
            raise RunError(
                f"{self._path.parent} has vanished, or is not the folder that this run "
                "began in: nothing more can be saved; once it is back, the same "
                "command goes on from its newest checkpoint"
            )

    def close(self):
        """Let others have the folder."""
        self._file.close()


def git_revision():
    """Commit of the running code, with "-dirty" after it where files were changed.

    None where the code is not tracked by git, as in an installed package: even inside
    somebody's repository, whose revision would say nothing about this code.
    """
    tracked = _git("ls-files", "--error-unmatch", "errors.py")
    if tracked is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def replace_file(path, text):
    """Write a whole file or nothing: a kill leaves the old one or the new one.

    RunError where it cannot be written.
    """
    path = pathlib.Path(path)
    new = path.with_name(path.name + ".tmp")
    with _reported(path):
        with open(new, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)


def check_writable(flag, path):
    """InputError for a file that cannot be written: now, not after the work.

    `flag` is what it was given by, such as "--json".
    """
    path = pathlib.Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        new = path.with_name(path.name + ".tmp")  # written first, see `replace_file`
        new.touch()
        new.unlink()
    except OSError as error:
        raise InputError(
            f"{flag} {path} cannot be written ({error.strerror}); allowed is a file in "
            "a folder that exists"
        ) from error


def append_line(file, text):
    """Append one line to `file`, open for unbuffered binary appending; or nothing.

    RunError where it cannot be written whole (a full disk): what was is taken back.
    """
    before = os.fstat(file.fileno()).st_size
    data = memoryview((text + "\n").encode())
    with _reported(file.name):
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise


@contextlib.contextmanager
def _reported(path):
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RunError(
            f"{path} cannot be written ({reason}); mend this, and the same command "
            "goes on from the newest checkpoint"
        ) from error


def _make(workdir):
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "is a file" if workdir.is_file() else f"fails: {error.strerror}"
        raise InputError(
            f"--workdir {workdir} cannot be made ({reason}): choose another"
        ) from error


def _compare(workdir, old, new, may_change):
    for name in [*new, *(name for name in old if name not in new)]:
        before, now = old.get(name, "no such field"), new.get(name, "no such field")
        if before != now and not _allowed(name, may_change):
            raise InputError(
                f"{workdir} holds a run with {name} = {before}, but this config has "
                f"{now}: choose another --workdir, or go back to the old value"
            )


def _allowed(name, may_change):
    return any(name == field or name.startswith(field + ".") for field in may_change)


def _flat(tree, prefix=""):
    """{"a": {"b": 1}} -> {"a.b": "1"}: JSON text, so that 1, 1.0 and true differ."""
    fields = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            fields |= _flat(value, f"{prefix}{key}.")
        else:
            fields[prefix + key] = json.dumps(value)
    return fields


def _read(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path} is no valid JSON ({error}): mend it, or choose another --workdir"
        ) from None


def _git(*words):
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *words], capture_output=True, text=True
        )
    except OSError:  # git is not installed
        return None
    return done.stdout.strip() if done.returncode == 0 else None
