"""A run that is killed and started again ends as if nothing had happened."""

import random
import signal
import time

import jax
import numpy as np
import pytest

from imagepiece_jax.training.checkpoint import Checkpoints
from imagepiece_jax.training.metrics import read_metrics
from tests import runs

# 1,438 training digits: 44 steps an epoch. Checkpoints at evaluations (44, 88) too.
FIELDS = runs.SMALL | {"epochs": 2, "checkpoint_every_steps": 9}
STEPS = 88


def without_times(line):
    return {name: value for name, value in line.items() if name != "throughput"}


def last_step(workdir):
    lines = read_metrics(workdir)
    return lines[-1]["step"] if lines else 0


def kill_after(process, workdir, step, delay):
    """SIGKILL a moment after the metrics of `step` were written."""
    deadline = time.monotonic() + 200
    while last_step(workdir) < step:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_runs_end_bit_identical(tmp_path):
    cache = tmp_path / "cache"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runs.finish(whole, FIELDS, cache)
    draw = random.Random(0)
    resumed_from = []
    for low, high in ((2, 8), (20, 40), (46, 80)):  # the first: before any checkpoint
        process = runs.start(killed, FIELDS, cache)
        kill_after(process, killed, draw.randint(low, high), draw.uniform(0, 0.3))
        resumed_from.append(Checkpoints(killed).latest_step())
    runs.finish(killed, FIELDS, cache)

    assert resumed_from[0] is None or resumed_from[0] == 9
    assert 0 < resumed_from[1] < resumed_from[2] < STEPS
    expected = [without_times(line) for line in read_metrics(whole)]
    assert [without_times(line) for line in read_metrics(killed)] == expected
    assert [line["step"] for line in expected if line["kind"] == "train"] == [
        *range(1, STEPS + 1)
    ]
    for kind in ("latest", "best"):
        ours = Checkpoints(killed).restore_variables(kind)
        theirs = Checkpoints(whole).restore_variables(kind)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_a_finished_run_says_so_and_another_config_is_refused(tmp_path):
    fields = FIELDS | {"epochs": 1}
    runs.finish(tmp_path / "run", fields, tmp_path / "cache")
    before = read_metrics(tmp_path / "run")
    runs.finish(tmp_path / "run", fields | {"log_every_steps": 3}, tmp_path / "cache")
    log = (tmp_path / "run.log").read_text()
    assert "this run is complete: 44 steps" in log
    assert read_metrics(tmp_path / "run") == before

    other = runs.start(tmp_path / "run", fields | {"lr": 0.001}, tmp_path / "cache")
    assert other.wait(timeout=100) == 2
    message = (tmp_path / "run.log").read_text().splitlines()[-1]
    assert message.startswith("error: ") and "lr = 0.016" in message
    assert read_metrics(tmp_path / "run") == before
