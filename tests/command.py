"""Commands run with flags: in this process, or in one of their own."""

import contextlib
import functools
import inspect
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
        """Itself, of a command that ended well, with no line on stderr but plans."""
        assert (self.status, self.lines) == (0, []), self
        return self

    @property
    def lines(self):
        """The lines on stderr, but for plans: what reductions come to."""
        found = []
        for line in self.err.splitlines():
            if line.startswith("error: ") or not line.endswith(" of the MACs"):
                found.append(line)
        return found


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
        _own_flags(main),
        flagsaver.flagsaver(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        flags.FLAGS.unparse_flags()
        try:
            cli.run(main)
        except SystemExit as end:
            status = end.code
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
    return Ended(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _own_flags(main):
    """The flags of a command alone, though tests have imported others beside it."""
    name = main.__module__
    if not name.startswith("imagepiece_jax.commands."):
        if "config" in flags.FLAGS:  # the program that was imported last owns it
            flags.FLAGS.register_key_flag_for_module(name, flags.FLAGS["config"])
        yield
        return
    source = inspect.getsource(sys.modules[name])
    exec(compile(source, name, "exec"), {"__name__": name})  # defines them anew
    own = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(name)}
    defined = flags.FLAGS._flags()
    others = {}
    for module, found in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("absl."):
            continue
        for flag in found:
            if flag.name not in own and flag.name in defined:
                others[flag.name] = defined.pop(flag.name)
    try:
        yield
    finally:
        defined.update(others)


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
    assert len(ended.lines) == 1 and ended.lines[0].startswith("error: "), ended.err
    return ended.lines[0].removeprefix("error: ")
