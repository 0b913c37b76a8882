"""Which run lives in this folder? Its config, and what code and versions ran it.

`config.json` is the whole config; a folder belongs to one config, apart from the fields
that may change when a run goes on. `run.json` has one entry for each time it was
started. `classes.json` is the list of the classes' names by label, where the data name
them.
"""

import json
import os
import pathlib
import subprocess

from imagepiece_jax.common.files import lock, replace_file
from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.models.pretrained import (
    CLASSES,
    RUN_CONFIG,
    class_names,
    without_retired,
)

RUN = "run.json"
SAME_CLASSES = "allowed are the same classes in the same order"
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
    if (workdir / RUN_CONFIG).exists():
        old = _flat(without_retired(_read(workdir / RUN_CONFIG)))
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
    replace_file(workdir / RUN_CONFIG, text + "\n")


def record_classes(workdir, names):
    """Write the names of the classes that a run is trained on; None writes nothing."""
    if names is not None:
        text = json.dumps(names, indent=0, ensure_ascii=False)
        replace_file(pathlib.Path(workdir) / CLASSES, text + "\n")


def other_class(path, names):
    """The first class that weights and data call by different names, or None.

    path: of the weights, which know their classes where they are a run's folder; names:
    of the classes of the data. -> (label, name of the run, name of the data); what has
    no name is not compared.
    """
    pairs = zip(class_names(path) or (), names or (), strict=False)
    for label, (ours, theirs) in enumerate(pairs):
        if None not in (ours, theirs) and ours != theirs:
            return label, ours, theirs
    return None


def check_classes(path, names, data, allowed, field=""):
    """InputError where weights at `path` and `data` have another class, by `names`.

    data: how the sentence calls the data; allowed: its end; field: what named `path`.
    """
    other = other_class(path, names)
    if other is not None:
        label, ours, theirs = other
        raise InputError(
            f"class {label} is {ours!r} in {field}{path}, but {theirs!r} in {data}: "
            f"{allowed}"
        )


def unnamed_classes(path, names, data):
    """The line on names that cannot be compared; None where they can, or for a file.

    As `check_classes`: a weights file never has names.
    """
    if not pathlib.Path(path).is_dir() or None not in (class_names(path), names):
        return None
    unnamed = data if names is None else path
    return f"classes are compared by number alone: {unnamed} does not name them"


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


def append_line(file, text):
    """Append one line to `file`, open for unbuffered binary appending; or nothing.

    RunError where it cannot be written whole (a full disk): what was is taken back.
    """
    before = os.fstat(file.fileno()).st_size
    data = memoryview((text + "\n").encode())
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        os.ftruncate(file.fileno(), before)
        raise RunError(
            f"{file.name} cannot be written ({error.strerror or error}); mend this, "
            "and the same command goes on from what is there"
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
