"""Commands run with flags: in this process, or in one of their own."""

import contextlib
import functools
import io
import logging
import os
import subprocess
import sys
from typing import NamedTuple
from unittest import mock

from absl import flags
from absl.testing import flagsaver

from imagepiece_jax import cli
from imagepiece_jax.common import process, signals
from tests import forked
from tests.runs import ROOT


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    def ok(self):
        """Itself, of a command that ended well."""
        assert self.status == 0, self
        return self

    def quiet(self):
        """Itself, of a command that ended well and wrote nothing to stderr."""
        assert (self.status, self.err) == (0, ""), self
        return self


def call(main, *words):
    """Run the command `main` with these words in this process."""
    out = io.StringIO()
    err = io.StringIO()
    root = logging.getLogger()
    handlers = root.handlers[:]
    level = root.level
    argv = [main.__module__, *map(str, words)]  # absl's name for where flags are from
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(process, "leave", sys.exit),
        mock.patch.object(signals, "end_process"),  # which tests go on in
        flagsaver.flagsaver(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        flags.FLAGS.unparse_flags()
        # Many commands define --config; here the one imported last owns it.
        if "config" in flags.FLAGS:
            flags.FLAGS.register_key_flag_for_module(argv[0], flags.FLAGS["config"])
        # All commands but one read --reduction as a field; here its flag is imported.
        defined = flags.FLAGS._flags()
        reduction = None
        if main.__module__ != "imagepiece_jax.commands.features":
            reduction = defined.pop("reduction", None)
        try:
            cli.run(main)
        except SystemExit as end:
            status = end.code
        finally:
            if reduction is not None:
                defined["reduction"] = reduction
            root.handlers[:] = handlers
            root.setLevel(level)
    return Ended(status, out.getvalue(), err.getvalue())


def start(*words, cwd=ROOT, imported=False, **environment):
    """`python` with these words, in a process of its own.

    `imported`: one that has imported JAX and the package before.
    """
    run = functools.partial(subprocess.run, capture_output=True, text=True)
    done = (forked.run if imported else run)(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        timeout=120,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def sentence(ended):
    """The one line of a command that found a mistake, which exits with status 2."""
    assert ended.status == 2, ended
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    return ended.err.removeprefix("error: ").rstrip("\n")
