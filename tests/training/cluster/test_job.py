"""Processes of a run: named by flags or a scheduler, joined, and lost.

SLURM's variables are those in the manual of srun ("OUTPUT ENVIRONMENT VARIABLES").
"""

import os
import signal
import sys
import time
import types

import jax
import pytest

from imagepiece_jax.training.cluster.job import (
    check_device_counts,
    is_process_loss,
)
from tests.helpers import forked_processes
from tests.helpers.refused_calls import refused
from tests.helpers.run_command import start

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "127.0.0.1",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
HEAD = """\
import atexit, os, threading, jax
from imagepiece_jax.errors import InputError
from imagepiece_jax.training.cluster.job import joined_cluster
"""
FACTS = "print(jax.process_count(), jax.config.read('jax_cuda_visible_devices'))"


def run(script, **variables):
    return start("-c", HEAD + script, imported=True, **variables)


def test_one_process_joins_nothing():
    joins = "print(jax.distributed.is_initialized())"
    for arguments, variables in ((), {}), ((None, 1), SLURM):
        done = run(f"with joined_cluster(*{arguments}): {joins}", **variables)
        assert done.out == "False\n", done.err


def test_srun_gives_a_task_one_gpu_and_flags_give_all():
    port = forked_processes.free_port()
    by_srun = f"os.environ['JAX_COORDINATOR_PORT'] = '{port}'\nwith joined_cluster()"
    by_flags = f"with joined_cluster('127.0.0.1:{port}', 1, 0)"
    for joined, gpus in ((by_srun, "0"), (by_flags, "all")):
        done = run(f"{joined}: {FACTS}", **SLURM)
        assert done.out.split() == ["1", gpus], done.err


def test_incomplete_flags_are_refused():
    cases = [(None, 2, 0), ("gpu1", 2, 0), ("gpu1:1", None, None), ("a:1", 2, 2)]
    done = run(
        f"for arguments in {cases}:\n"
        "    try:\n"
        "        with joined_cluster(*arguments): pass\n"
        "    except InputError as error: print(error)"
    )
    assert done.out.count("give coordinator") == 4, done.err


def test_unequal_device_counts_are_refused(monkeypatch):
    owners = [0, 0, 1, 2, 2]
    devices = [types.SimpleNamespace(process_index=owner) for owner in owners]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    with refused("device counts differ by process: [(0, 2), (1, 1), (2, 2)]"):
        check_device_counts()
    del devices[1], devices[-1]
    check_device_counts()


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_process_waiting_for_others_ends_at_ctrl_c(process, signum=signal.SIGINT):
    """JAX waits in C++, where Python's own handlers do not run."""
    address = f"127.0.0.1:{forked_processes.free_port()}"
    reader, writer = map(open, os.pipe(), "rw")
    with reader:
        with writer:
            code = f"{HEAD}with joined_cluster({address!r}, 2, {process}): pass"
            waiting = forked_processes.Process(
                [sys.executable, "-c", code],
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
                stderr=writer,
            )
        try:
            assert "waiting for all processes" in reader.readline()
            time.sleep(1)  # until it waits
            waiting.send_signal(signum)
            status = waiting.wait(timeout=20)
        finally:
            waiting.kill()
        err = reader.read()
    assert (status, err) == (-signum, "")


def test_the_loss_of_another_process_is_a_sentence():
    address = f"127.0.0.1:{forked_processes.free_port()}"
    work = "raise ValueError('Gloo AllGather failed')"
    done = run(f"with joined_cluster({address!r}, 1, 0):\n    {work}")
    waiting, error, message = done.err.splitlines()
    assert (done.status, error) == (1, "Gloo AllGather failed")
    assert message.startswith("error: another process of this run has ended")


@pytest.mark.parametrize(
    "message, lost",
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", True),
        ("INTERNAL: NCCL operation ncclAllReduce failed: remote error", True),
        ("INVALID_ARGUMENT: shapes do not match", False),
    ],
)
def test_a_process_loss_is_distinguished_from_other_errors(message, lost):
    assert is_process_loss(RuntimeError(message)) == lost
