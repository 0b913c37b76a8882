"""Graceful shutdown: a run saves first; one that cannot answer ends in time."""

import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from imagepiece_jax.common.signals import SIGNALS
from imagepiece_jax.training.cluster.preemption import Interrupted, StopRequest
from tests import tiny_runs
from tests.runs import ROOT


def test_a_signal_is_noted_and_the_old_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before[1])
    with StopRequest() as request:
        assert request.requested() == 0
        signal.raise_signal(signal.SIGTERM)
        assert request.requested() == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)  # the first one counts
        assert request.requested() == signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)) == before


def test_an_ignored_signal_stays_ignored():
    """Ctrl-C, of a process that a shell's `&` has started."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGINT)
            assert request.requested() == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_no_signal_is_heard():
    """Even where all of them are ignored."""
    before = {s: signal.signal(s, signal.SIG_IGN) for s in SIGNALS}

    def requested():
        with StopRequest() as request:
            return request.requested()

    try:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            assert pool.submit(requested).result() == 0
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_what_encloses_a_request_hears_no_signal_until_it_is_left():
    """Of several processes one gets SIGTERM while the others make it save."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno())
    try:
        with StopRequest() as request:
            request.ignore_signals()
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.set_wakeup_fd(before) == writer.fileno()
        reader.setblocking(False)
        with pytest.raises(BlockingIOError):
            reader.recv(1)
    finally:
        signal.set_wakeup_fd(before)
        reader.close()
        writer.close()


def test_work_is_abandoned_between_two_items():
    done = []
    with StopRequest() as request, pytest.raises(Interrupted):
        for piece in request.until_requested(iter(range(5))):
            done.append(piece)
            if piece == 2:
                signal.raise_signal(signal.SIGTERM)
    assert done == [0, 1, 2]


def test_all_processes_stop_at_the_same_call():
    """A process without a signal gets that of another, and keeps it."""
    answers = iter([0, signal.SIGTERM])
    with StopRequest(agree=lambda own: next(answers)) as request:
        assert [request.requested() for _ in range(3)] == [0, 15, 15]


# Busy where Python's own handlers do not run, as in a compile.
WORK = """
import contextlib, hashlib, signal, sys
from imagepiece_jax.training.cluster.preemption import StopRequest

if __name__ == "__main__":
    with StopRequest() as request, contextlib.ExitStack() as stack:
        if sys.argv[1] == "noted":
            signal.raise_signal(signal.SIGTERM)
        print(flush=True)
        if sys.argv[1] != "steps":
            stack.enter_context(request.ending_at_once())
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def ended(where, *signals):
    """(seconds, status, stderr) of that work after these signals."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, where],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "\n"
    time.sleep(0.05)
    began = time.monotonic()
    for signum in signals:
        process.send_signal(signum)
        time.sleep(0.05)
    _, err = process.communicate(timeout=30)
    return time.monotonic() - began, process.returncode, err


@pytest.mark.parametrize(
    "where, signals, status, said",
    [
        ("compile", [signal.SIGTERM], 143, "stopped with nothing to save; the same"),
        ("noted", [], 143, "stopped with nothing to save; the same"),
        # Two SIGTERMs, as where a shell forwards it, are one.
        ("steps", [15, 15, signal.SIGINT], 130, "stopped without saving; "),
    ],
)
def test_what_cannot_answer_ends_at_once(where, signals, status, said):
    """In a compile; at the beginning of one, after a signal; at a second Ctrl-C."""
    seconds, found, err = ended(where, *signals)
    assert found == status and seconds < 8
    assert err.startswith(said)
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_begun")
def test_sigterm_in_the_first_compile_ends_at_once(tmp_path):
    """Ctrl-C in a step, and SIGTERM in an evaluation: see test_resume."""
    run = tiny_runs.TinyRun(tmp_path / "run", tmp_path / "cache")
    run.start()
    run.until(run.begun)
    assert run.end(signal.SIGTERM) == 143
    assert run.on_disk() is None
    assert run.said().startswith("stopped with nothing to save")
