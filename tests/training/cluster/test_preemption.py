"""Graceful shutdown: a run saves first, or ends at once where it cannot save."""

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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_is_noted_and_handlers_are_restored(name):
    """A lost ssh session sends SIGHUP, a scheduler SIGUSR1 (--signal=USR1@60)."""
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
    """A process started by a shell's `&` ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGINT)
            assert request.stop_signal() == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_hear_no_signal():
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


def test_a_request_ends_work_between_two_items():
    items = []
    with StopRequest() as request, pytest.raises(Interrupted):
        for item in request.until_requested(iter(range(5))):
            items.append(item)
            if item == 2:
                signal.raise_signal(signal.SIGTERM)
    assert items == [0, 1, 2]


def test_all_processes_stop_together():
    answers = iter([0, signal.SIGTERM])
    with StopRequest(agree=lambda own: next(answers)) as request:
        assert [request.stop_signal() for _ in range(3)] == [0, 15, 15]


# Python's handlers do not run in this work, as in a compile.
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
def test_a_busy_process_ends_at_once(where, signum):
    """In a compile, at a compile's start after a signal, or at a second Ctrl-C."""
    ended = start("-c", WORK, where, PYTHONPATH=str(ROOT))
    assert (ended.status, ended.err) == (-signum, "")


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_begun")
def test_sigterm_in_the_first_compile_ends_at_once(tmp_path):
    workdir = tmp_path / "run"
    fields = {"model.depth": 1, "model.patch_size": 4, "reduction": "none"}
    fields |= {"model.stem": "patch", "model.embed_dim": 16, "model.num_heads": 2}
    process = small_runs.start(workdir, fields, tmp_path / "cache", quick=True)
    while not (workdir / "metrics.jsonl").exists():  # opened before the compile
        assert process.poll() is None, workdir.with_name("run.log").read_text()
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert Checkpoints(workdir).find_latest_step() is None
