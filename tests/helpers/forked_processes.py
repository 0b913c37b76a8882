"""Python processes forked from one that has imported JAX and the package.

Imports take two seconds of every process, so a fork server imports once for every
worker of the suite. Tests of the start itself, or of imports, take `subprocess`.
"""

import atexit
import json
import multiprocessing
import os
import pathlib
import runpy
import socket
import sys
import types
from multiprocessing import connection, forkserver
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODULES = [
    "imagepiece_jax.evaluation.compare",
    "imagepiece_jax.training.cluster.job",
    "imagepiece_jax.training.trainer",
    "ml_collections.config_flags",
    "tensorboardX",
    "tests.helpers.compiling",
    "tests.helpers.small_runs",
]


def fork(words, cwd=ROOT, env=None, stdout=None, stderr=None):
    """Start `python WORDS`: FILE, -m NAME or -c CODE. Returns multiprocessing's object.

    stdout, stderr: open files; None: the test's own
    """
    opened = stdout or sys.__stdout__, stderr or sys.__stderr__
    # multiprocessing passes open files only as connections.
    files = [connection.Connection(os.dup(file.fileno())) for file in opened]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    # A fork would lose OpenBLAS's threads.
    server = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    with mock.patch.dict(os.environ, server):
        forkserver.ensure_running()
    environment = dict(os.environ if env is None else env)
    process = context.Process(target=_run, args=(words, cwd, environment, files))
    process.start()
    for file in files:
        file.close()
    return process


def statuses(processes, timeout):
    """Wait for processes' exit statuses, and leave no process running.

    A status is negative after a signal, and None if the process had to be killed.
    """
    try:
        for process in processes:
            process.join(timeout)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(words, folder, environment, files):
    """Run `words` like `python WORDS`, in the new process."""
    import jax

    from imagepiece_jax.training.initial_weights import model_variables
    from tests.helpers import compiling, small_runs

    for number, file in enumerate(files, 1):
        os.dup2(file.fileno(), number)
    # Python buffers a terminal, a pipe and a file in other ways.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for name, text in environment.items():
        if name.startswith("JAX_"):  # JAX has read the variables at import
            number = json.loads(text) if text.lstrip("-").isdecimal() else text
            jax.config.update(name.lower(), number)
    compiling.speed_up()
    model_variables.draw_variables = small_runs.draw_untrained
    kind, *rest = words = [*map(str, words)]
    try:
        if kind == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *rest[1:]]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(rest[0], vars(main))
        else:
            sys.argv = words
            runpy.run_path(kind, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing's own end leaves them out
