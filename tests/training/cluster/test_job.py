"""Processes of a run: named by flags or a scheduler, joined, stopped, and lost.

SLURM's variables are those in the manual of srun ("OUTPUT ENVIRONMENT VARIABLES").
"""

import os
import signal
import time
import types

import jax
import pytest

from imagepiece_jax.training.cluster.job import check_device_counts
from tests.helpers import forked_processes, small_runs
from tests.helpers.refused_calls import refused
from tests.helpers.run_command import start
from tests.helpers.small_states import assert_same

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "127.0.0.1",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
HEAD = """\
import os, jax
from imagepiece_jax.training.cluster.job import joined_cluster
"""
FACTS = "print(jax.distributed.is_initialized(), "
FACTS += "jax.config.read('jax_cuda_visible_devices'))"


@pytest.mark.parametrize(
    "arguments, variables, joins, gpus",
    [
        ("", {}, "False", "all"),
        ("None, 1", SLURM, "False", "all"),
        ("", SLURM, "True", "0"),
        ("'127.0.0.1:{port}', 1, 0", SLURM, "True", "all"),
    ],
)
def test_srun_gives_a_task_one_gpu_and_flags_give_all(
    arguments, variables, joins, gpus
):
    port = forked_processes.free_port()
    script = f"{HEAD}os.environ['JAX_COORDINATOR_PORT'] = '{port}'\n"
    script += f"with joined_cluster({arguments.format(port=port)}): {FACTS}"
    done = start("-c", script, imported=True, **variables)
    assert done.out.split() == [joins, gpus], done.err


def test_incomplete_flags_are_refused():
    cases = [(None, 2, 0), ("gpu1", 2, 0), ("gpu1:1", None, None), ("a:1", 2, 2)]
    script = (
        f"{HEAD}from imagepiece_jax.errors import InputError\n"
        f"for arguments in {cases}:\n"
        "    try:\n"
        "        with joined_cluster(*arguments): pass\n"
        "    except InputError as error: print(error)"
    )
    done = start("-c", script, imported=True)
    assert done.out.count("give coordinator") == 4, done.err


def test_the_loss_of_another_process_is_a_sentence():
    """A real loss may also end this process in JAX's C++, without a Python error."""
    arguments = f"'127.0.0.1:{forked_processes.free_port()}', 1, 0"
    script = f"{HEAD}with joined_cluster({arguments}):\n"
    script += "    raise ValueError('Gloo AllGather failed')"
    done = start("-c", script, imported=True)
    message = "error: another process of this run has ended"
    assert done.status == 1 and done.lines[-1].startswith(message), done


def test_unequal_device_counts_are_refused(monkeypatch):
    owners = [0, 0, 1, 2, 2]
    devices = [types.SimpleNamespace(process_index=owner) for owner in owners]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    with refused("device counts differ by process: [(0, 2), (1, 1), (2, 2)]"):
        check_device_counts()
    del devices[1], devices[-1]
    check_device_counts()


@pytest.mark.slow
def test_a_process_waiting_for_others_ends_at_ctrl_c(tmp_path):
    """JAX waits in C++, where Python's own handlers do not run."""
    address = f"127.0.0.1:{forked_processes.free_port()}"
    code = f"{HEAD}with joined_cluster({address!r}, 2, 1): pass"
    log = tmp_path / "log"
    with log.open("w") as file:
        words = ["-c", code]
        env = os.environ | {"JAX_PLATFORMS": "cpu"}
        waiting = forked_processes.fork(words, env=env, stderr=file)
    while "waiting for all processes" not in log.read_text():
        time.sleep(0.1)
    time.sleep(1)  # until it waits
    os.kill(waiting.pid, signal.SIGINT)
    assert forked_processes.statuses([waiting], timeout=20) == [-signal.SIGINT]


# 12 steps an epoch, with random draws, averages, batch statistics and a reduction.
FIELDS = small_runs.SMALL | {"model.depth": 1, "model.patch_size": 4, "epochs": 4}
FIELDS |= {"reduction": "imagepiece:merge_blocks=():prune_blocks=(0,)"}
FIELDS |= {"mixup": 0.8, "cutmix": 1.0, "batch_size": 112, "checkpoint_every_steps": 5}


def wait_for_steps(workdir, count, processes):
    """Wait for `count` more steps, so that the run is in its loop."""
    last = len(small_runs.lines(workdir, "train"))
    while len(small_runs.lines(workdir, "train")) < last + count:
        assert all(process.exitcode is None for process in processes)
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_begun")
@pytest.mark.parametrize("is_pair", [False, True])
def test_stopped_and_killed_runs_end_like_an_undisturbed_one(tmp_path, is_pair):
    """A pair stops at the same step after a signal to one of its processes."""

    def start(name):
        if is_pair:
            return small_runs.start_two(tmp_path / name, FIELDS)
        return [small_runs.start(tmp_path / name, FIELDS)]

    whole = start("whole")
    assert set(forked_processes.statuses(whole, timeout=300)) == {0}
    # JAX tells a pair's processes of SIGTERM alone, which Ctrl-C becomes there.
    for signum in [signal.SIGINT] + [signal.SIGTERM] * (not is_pair):
        processes = start("run")
        wait_for_steps(tmp_path / "run", 2, processes)
        os.kill(processes[-1].pid, signum)
        statuses = forked_processes.statuses(processes, timeout=300)
        assert set(statuses) == {128 + (signal.SIGTERM if is_pair else signum)}
        log = tmp_path / ("run.0.log" if is_pair else "run.log")
        assert log.read_text().splitlines()[-1].startswith("stopped at step ")
    processes = start("run")
    wait_for_steps(tmp_path / "run", 2, processes)
    processes[0].kill()
    statuses = forked_processes.statuses(processes, timeout=300)
    assert statuses[0] == -signal.SIGKILL and 0 not in statuses
    assert set(forked_processes.statuses(start("run"), timeout=300)) == {0}
    lines = [small_runs.unclocked_lines(tmp_path / name) for name in ("run", "whole")]
    assert lines[0] == lines[1]
    for kind in ("latest", "best"):
        assert_same(*[small_runs.arrays(tmp_path / x, kind) for x in ("run", "whole")])
    assert not [*(tmp_path / "run").rglob("*tmp*")]
