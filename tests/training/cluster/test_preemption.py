"""Graceful shutdown: a run saves first; one that cannot answer ends in time."""

import concurrent.futures
import signal
import time

import pytest

from imagepiece_jax.common.signals import END_SIGNALS
from imagepiece_jax.training.cluster.checkpoint import Checkpoints
from imagepiece_jax.training.cluster.preemption import Interrupted, StopRequest
from tests.helpers import small_runs
from tests.helpers.run_command import start
from tests.helpers.small_runs import ROOT
from tools import drill


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_is_noted_and_the_old_handlers_come_back(name):
    """SIGHUP is a lost ssh session's, SIGUSR1 a scheduler's (--signal=USR1@60)."""
    signum = signal.Signals[name]
    before = signal.getsignal(signum)
    with StopRequest() as request:
        assert request.stop_signal() == 0
        signal.raise_signal(signum)
        assert request.stop_signal() == signum
        signal.raise_signal(signal.SIGINT)  # the first one counts
        assert request.stop_signal() == signum
    assert signal.getsignal(signum) is before


def test_an_ignored_signal_stays_ignored():
    """Ctrl-C, of a process that a shell's `&` has started."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGINT)
            assert request.stop_signal() == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_no_signal_is_heard():
    before = {s: signal.signal(s, signal.SIG_IGN) for s in END_SIGNALS}

    def requested():
        with StopRequest() as request:
            return request.stop_signal()

    try:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            assert pool.submit(requested).result() == 0
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_work_is_abandoned_between_two_items():
    done = []
    with StopRequest() as request, pytest.raises(Interrupted):
        for piece in request.until_requested(iter(range(5))):
            done.append(piece)
            if piece == 2:
                signal.raise_signal(signal.SIGTERM)
    assert done == [0, 1, 2]


def test_all_processes_stop_at_the_same_call():
    answers = iter([0, signal.SIGTERM])
    with StopRequest(agree=lambda own: next(answers)) as request:
        assert [request.stop_signal() for _ in range(3)] == [0, 15, 15]


# Busy where Python's own handlers do not run, as in a compile.
WORK = """
import contextlib, hashlib, os, signal, sys, threading
from imagepiece_jax.training.cluster.preemption import StopRequest

with StopRequest() as request, contextlib.ExitStack() as stack:
    if sys.argv[1] == "noted":
        signal.raise_signal(signal.SIGTERM)
    if sys.argv[1] == "twice":
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # as where a shell forwards it
        signal.raise_signal(signal.SIGINT)
    threading.Timer(0.1, lambda: os.kill(os.getpid(), 15)).start()
    stack.enter_context(request.ending_at_once())
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.mark.parametrize(
    "where, signum", [("compile", 15), ("noted", 15), ("twice", 2)]
)
def test_what_cannot_answer_ends_at_once(where, signum):
    """In a compile; at the beginning of one, after a signal; at a second Ctrl-C."""
    ended = start("-c", WORK, where, PYTHONPATH=str(ROOT))
    assert (ended.status, ended.err) == (-signum, "")


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_begun")
def test_sigterm_in_the_first_compile_ends_at_once(tmp_path):
    workdir = tmp_path / "run"
    fields = drill.FIELDS | {"model.stem": "patch"}
    process = small_runs.start(workdir, fields, tmp_path / "cache", quick=True)
    while not (workdir / "metrics.jsonl").exists():  # which is opened before it
        assert process.poll() is None, workdir.with_name("run.log").read_text()
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert Checkpoints(workdir).find_latest_step() is None
