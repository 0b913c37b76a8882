"""Python processes forked from one that has imported JAX and the package.

Imports take two seconds of every process. Here a server imports once, waits, and forks
for each `Process`, which traces as fast as the tests do. Tests of the start itself, or
of imports, take `subprocess`.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pathlib
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import types
from subprocess import Popen

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODULES = (
    "imagepiece_jax.evaluation.compare",
    "imagepiece_jax.training.cluster.job",
    "imagepiece_jax.training.trainer",
    "ml_collections.config_flags",
    "tensorboardX",
)
GARBAGE_THRESHOLDS = 200_000, 20, 100
QUICKLY = "TESTS_BEGIN_QUICKLY"  # in the environment: `begin_quickly` in the process


@functools.cache
def _server():
    """Socket to the server process. Each worker of the suite has one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = Popen(
            [
                sys.executable,
                "-m",
                "tests.helpers.forked_processes",
                f"{theirs.fileno()}",
            ],
            cwd=ROOT,
            # It has no second thread, which a fork would lose.
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    atexit.register(process.wait)
    atexit.register(ours.close)  # first: it ends the process
    return ours


class Process:
    """Like `subprocess.Popen`, for `python FILE`, `-m NAME` or `-c CODE`."""

    def __init__(self, args, cwd=ROOT, env=None, stdout=None, stderr=None):
        self.args = args
        self.returncode = None
        environment = dict(os.environ if env is None else env)
        request = json.dumps([[*map(str, args[1:])], str(cwd), environment])
        files = [1 if stdout is None else stdout.fileno()]
        files.append(2 if stderr is None else stderr.fileno())
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(_server(), [request.encode()], [theirs.fileno(), *files])
        self.pid = int(self._socket.recv(64))

    def wait(self, timeout=None):
        """The exit status, negative after a signal."""
        if self.returncode is None:
            self._socket.settimeout(timeout)
            try:
                self.returncode = int(self._socket.recv(64))
            except (BlockingIOError, TimeoutError):
                raise subprocess.TimeoutExpired(self.args, timeout) from None
            self._socket.close()
        return self.returncode

    def poll(self):
        """The exit status; None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, signum):
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def statuses(processes, timeout):
    """Wait for processes' exit statuses, and leave no process running."""
    try:
        return [process.wait(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()


def free_port():
    """The number of a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if sys.platform != "linux":
    Process = Popen  # elsewhere a fork may not use earlier imports


def run(args, cwd=ROOT, env=None, timeout=120):
    """Like `subprocess.run` with both outputs as text."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = Process(args, cwd=cwd, env=env, stdout=out, stderr=err)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        out.seek(0)
        err.seek(0)
        status = process.returncode
        return subprocess.CompletedProcess(args, status, out.read(), err.read())


def _watch(reply):
    """Fork, send pid and exit status, and end; return in the new process alone."""
    if not (child := os.fork()):
        reply.close()
        return
    reply.send(str(child).encode())
    _, status = os.waitpid(child, 0)
    reply.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _request(requests):
    """Return each request in a new process, and None here after the last one."""
    while True:
        message, files, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        if not message:
            return None
        if not os.fork():
            requests.close()
            _watch(socket.socket(fileno=files[0]))
            for number, file in enumerate(files[1:], 1):
                os.dup2(file, number)
                os.close(file)
            return json.loads(message)
        for file in files:
            os.close(file)


def begin_quickly(replace=setattr):
    """Let NumPy draw the initial weights of runs."""
    from imagepiece_jax.training import initial_weights
    from tests.helpers import small_runs

    replace(
        initial_weights.model_variables, "draw_variables", small_runs.draw_untrained
    )


def _run(words, folder, environment):
    """Run `words` like `python WORDS`."""
    import jax

    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.enable()
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # another kind of file
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for name in filter(re.compile("JAX_").match, environment):  # read at import
        text = environment[name]
        number = re.fullmatch(r"-?\d+", text)
        jax.config.update(name.lower(), int(text) if number else text)
    if QUICKLY in environment:
        begin_quickly()
    kind, *rest = words
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


def main():
    gc.disable()
    for name in MODULES:
        importlib.import_module(name)
    from tests.helpers import fast_tracing, stored_programs  # both import JAX

    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    fast_tracing.remember_initializers()
    fast_tracing.name_no_arguments()
    fast_tracing.lower_fast()
    stored_programs.write_whole()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the tests end it
    if request := _request(socket.socket(fileno=int(sys.argv[1]))):
        return _run(*request)
    signal.alarm(10)  # ends this process if a test has left one running
    with contextlib.suppress(ChildProcessError):
        while os.wait():
            pass


if __name__ == "__main__":
    main()
