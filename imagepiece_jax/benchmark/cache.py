"""Cache of measured results: one line of JSON each in a folder's points.jsonl.

A result is identified by its whole setting: what was measured with the same one is
read, not measured again. A line is on disk before the next measurement starts, so a
command that was stopped resumes where it was. Lines of former versions have no digest
of the data: they count for the data that first ask for them, and for no others then.
"""

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

from imagepiece_jax.common.files import append_line, git_revision, lock, make_folder
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.settings import current

FILE = "points.jsonl"


class ResultCache:
    """All results in a folder; close it to let other processes measure into it.

    again: measure everything once more, at its first use. `versions` (of libraries and
    device) stands in each new line.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        again: bool = False,
        versions: dict[str, Any] | None = None,
    ):
        path = pathlib.Path(folder) / FILE
        make_folder("--out", folder)
        try:
            self._file = open(path, "ab+", buffering=0)
        except OSError as error:
            raise InputError(
                f"--out {folder} cannot be written ({error.strerror}): choose another"
            ) from error
        lock(
            self._file,
            f"another process is measuring into {folder}: wait for it, or choose "
            "another --out",
        )
        try:
            results = _read(self._file, path)  # also cuts off a torn last line
        except InputError:
            self._file.close()
            raise
        self._results = {} if again else results
        self._versions = versions or {}
        self.experiment = None  # the name that new lines carry

    def close(self):
        self._file.close()

    def __contains__(self, setting: dict) -> bool:
        """Whether `result` of `setting` needs no measurement."""
        return _key(setting) in self._results or _older(setting) in self._results

    def result(
        self, setting: dict, measure: Callable[[], dict], what: str = "a point"
    ) -> dict:
        """The result of `measure()` for `setting`, both dicts of JSON values.

        From the file where a line has the same setting; else stderr shows that `what`
        is being measured, and how long it took.
        """
        key, older = _key(setting), _older(setting)
        if key not in self._results and older in self._results:
            self._add(setting, self._results.pop(older))
        if key not in self._results:
            began = time.monotonic()
            print(f"measuring {what} ...", end="", file=sys.stderr, flush=True)
            try:
                result = measure()
            finally:
                seconds = time.monotonic() - began
                print(f" {seconds:.0f} s", file=sys.stderr, flush=True)
            self._add(setting, result)
        return self._results[key]

    def _add(self, setting, result):
        line = {
            "experiment": self.experiment,
            "setting": setting,
            "result": result,
            "versions": self._versions,
            "git": git_revision(),
            "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        append_line(self._file, json.dumps(line))
        self._results[_key(setting)] = json.loads(json.dumps(result))


def _key(setting):
    """A setting of any version as text."""
    names = [k for k in ("reduction", "trained_as") if k in setting]
    now = {k: current(setting[k]) for k in names}
    return json.dumps(setting | now, sort_keys=True)


def _older(setting):
    """The key of a setting in a line of former versions, without a digest."""
    return _key({k: v for k, v in setting.items() if k != "digest"})


def _read(file, path):
    """{key: result} of all whole lines; a torn last line is cut off."""
    file.seek(0)
    results, whole = {}, 0
    lines = file.read().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = json.loads(line)
            if "digest" in entry["setting"]:
                results.pop(_older(entry["setting"]), None)
            results[_key(entry["setting"])] = entry["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}, line {number} is not a measured point ({error!r}): fix or "
                "remove the line"
            ) from error
        whole += len(line) + 1
    os.ftruncate(file.fileno(), whole)
    return results
