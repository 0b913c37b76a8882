"""Commands run with words, in this process or in a new one."""

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings
from typing import NamedTuple
from unittest import mock

from imagepiece_jax import cli
from imagepiece_jax.common import progress, signals
from tests.helpers import forked_processes
from tests.helpers.small_runs import ROOT


@contextlib.contextmanager
def show_log():
    """Context in which the package prints its log, and caplog sees it, too."""
    logger = logging.getLogger("imagepiece_jax")
    before = dict(vars(logger))
    progress.show_progress()
    logger.propagate = True
    with mock.patch.object(progress, "show_progress"):
        try:
            yield
        finally:
            logger.handlers = before["handlers"]
            logger.setLevel(before["level"])


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    def ok(self):
        assert self.status == 0, self
        return self

    def quiet(self):
        """Itself, if the command ended well and printed only plans on stderr."""
        assert (self.status, self.lines) == (0, []), self
        return self

    @property
    def lines(self):
        """The lines on stderr, except the plans of reductions."""
        is_plan = re.compile(r"(?!error: ).* of the MACs").fullmatch
        return [line for line in self.err.splitlines() if not is_plan(line)]


def call(main, *words):
    """Run the command `main` with these words in this process."""
    out = io.StringIO()
    err = io.StringIO()
    root = logging.getLogger()
    handlers = root.handlers[:]
    level = root.level
    argv = ["command", *map(str, words)]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(cli, "leave_process", sys.exit),
        mock.patch.object(signals, "exit_on_sigterm"),  # tests go on
        mock.patch.object(warnings, "showwarning"),
        show_log(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.run_command(main)
        except SystemExit as end:
            status = end.code
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
    return Ended(status, out.getvalue(), err.getvalue())


def start(*words, cwd=ROOT, imported=False, timeout=120, **environment):
    """Run `python` with these words in a new process.

    imported: fork it from one that has imported JAX and the package
    """
    env = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        options = {"cwd": cwd, "env": env, "stdout": out, "stderr": err}
        if imported:
            process = forked_processes.fork(words, **options)
            (status,) = forked_processes.statuses([process], timeout)
        else:
            command = [sys.executable, *map(str, words)]
            status = subprocess.run(command, timeout=timeout, **options).returncode
        out.seek(0)
        err.seek(0)
        return Ended(status, out.read(), err.read())


def sentence(ended):
    assert ended.status == 2, ended
    assert len(ended.lines) == 1 and ended.lines[0].startswith("error: "), ended.err
    return ended.lines[0].removeprefix("error: ")
