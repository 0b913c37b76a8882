"""What the last words of a process are, whoever ends it."""

import subprocess
import sys

import pytest

from imagepiece_jax.training import peer_failure

HEAD = "import atexit, os, threading; from imagepiece_jax.training import peer_failure;"


def run(script):
    command = [sys.executable, "-c", HEAD + script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_an_abort_in_a_thread_ends_with_the_sentence():
    done = run(
        "peer_failure.speak_at_abort('error: gone');"
        "print('begin', flush=True);"
        "thread = threading.Thread(target=os.abort); thread.start(); thread.join()"
    )
    assert (done.returncode, done.stdout) == (peer_failure.STATUS, "begin\n")
    assert done.stderr == "error: gone\n"


def test_who_leaves_for_a_reason_of_its_own_tells_only_that():
    """What is registered first runs last: JAX, which aborts where others are left."""
    done = run(
        "atexit.register(os.abort);"
        "atexit.register(os.write, 2, b'a long report');"
        "peer_failure.speak_at_abort('error: gone');"
        "peer_failure.leave_quietly();"
        "raise SystemExit('error: disk is full')"
    )
    assert (done.returncode, done.stderr) == (
        peer_failure.STATUS,
        "error: disk is full\n",
    )


@pytest.mark.parametrize(
    "message, lost",
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", True),
        ("INTERNAL: NCCL operation ncclAllReduce failed: remote error", True),
        ("DEADLINE_EXCEEDED: Barrier timed out", True),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes", False),
        ("INVALID_ARGUMENT: shapes do not match", False),
    ],
)
def test_losing_another_process_is_told_from_other_errors(message, lost):
    assert peer_failure.is_loss(RuntimeError(message)) == lost


def test_the_sentence_says_who_and_what_to_do():
    text = peer_failure.sentence(1, 4, "gpu1:61500")
    assert text.startswith("error: process 1 of 4 stops")
    assert "start all of them again" in text and "\n" not in text
