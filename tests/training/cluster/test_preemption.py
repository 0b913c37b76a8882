import os
import signal
import time

import pytest

from imagepiece_jax.training.cluster.preemption import stop_signals
from tests.helpers import forked_processes, small_runs
from tests.helpers.small_states import assert_same

# 12 steps an epoch, with random draws, averages, batch statistics and a reduction.
FIELDS = small_runs.SMALL | {"model.depth": 1, "model.patch_size": 4, "epochs": 4}
FIELDS |= {"reduction": "imagepiece:merge_blocks=():prune_blocks=(0,)"}
FIELDS |= {"mixup": 0.8, "cutmix": 1.0, "batch_size": 112, "checkpoint_every_steps": 5}


def test_a_signal_is_known_after_the_step():
    with stop_signals() as stop_signal:
        assert stop_signal(1) == 0
        signal.raise_signal(signal.SIGUSR1)
        assert stop_signal(2) == signal.SIGUSR1


def wait_for_steps(workdir, count, processes):
    """Wait for `count` more steps, so that the run is in its loop."""
    last = len(small_runs.lines(workdir, "train"))
    while len(small_runs.lines(workdir, "train")) < last + count:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)


def assert_equal_runs(workdir, whole):
    assert small_runs.unclocked_lines(workdir) == small_runs.unclocked_lines(whole)
    for kind in ("latest", "best"):
        assert_same(small_runs.arrays(workdir, kind), small_runs.arrays(whole, kind))


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
        processes[-1].send_signal(signum)
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
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")
    assert not [*(tmp_path / "run").rglob("*tmp*")]
    assert os.listdir(tmp_path / "run/checkpoints/latest")
