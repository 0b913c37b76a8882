"""Two processes of four devices do what one of eight does, or stop together.

They are started as SLURM would start them, and meet on the loopback address.
"""

import signal
import time

import jax
import numpy as np
import pytest

from imagepiece_jax.training.checkpoint import Checkpoints
from imagepiece_jax.training.metrics import read_metrics
from tests import runs

# Everything that draws, mixes images of different hosts or synchronises is on: drop
# path, mixup, cutmix, copies of images, batch norm of the convolutional stem.
DRAWS = {"model.drop_path_rate": 0.2, "mixup": 0.8, "cutmix": 1.0, "data.repeats": 3}
# 1,438 digits, 128 a step: 11 steps an epoch.
FIELDS = DRAWS | {"batch_size": 128, "eval_batch_size": 128, "model.stem": "conv"}
GONE = "stops, for another one has ended or cannot be reached"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start_two(cache):
    """`runs.start_two`; what is still running after the test is killed."""
    started = []

    def start(workdir, fields, **of_the_second):
        started.extend(runs.start_two(workdir, fields, cache, **of_the_second))
        return started[-2:]

    yield start
    for process in started:
        process.kill()
        process.wait()


def output(workdir, process):
    return workdir.with_name(f"{workdir.name}.{process}.log").read_text()


def train_lines(workdir):
    return [line for line in read_metrics(workdir) if line["kind"] == "train"]


def losses(workdir):
    return np.array([line["loss"] for line in train_lines(workdir)])


def wait_for_step(workdir, step, processes):
    deadline = time.monotonic() + 200
    while not (lines := train_lines(workdir)) or lines[-1]["step"] < step:
        assert [p.poll() for p in processes] == [None, None], output(workdir, 0)[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_same_evaluation(ours, theirs, atol):
    ours, theirs = (
        [line for line in read_metrics(workdir) if line["kind"] == "eval"]
        for workdir in (ours, theirs)
    )
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["images"] == other["images"] == 359
        assert abs(mine["loss"] - other["loss"]) < atol


def assert_same_checkpoints(ours, theirs, atol):
    """Weights, averages, batch-norm statistics: of the latest and of the best."""
    assert Checkpoints(ours).latest_step() == Checkpoints(theirs).latest_step()
    for kind in ("latest", "best"):
        trees = [Checkpoints(path).restore_variables(kind) for path in (ours, theirs)]
        assert "batch_stats" in str(jax.tree_util.tree_structure(trees[0]))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), *trees
        )


def test_two_hosts_train_as_one_process(tmp_path, cache, start_two):
    """ImagePiece: a near tie may flip a rank once rounding differs."""
    one, two = tmp_path / "one", tmp_path / "two"
    fields = runs.SMALL | FIELDS | {"epochs": 1}
    processes = start_two(two, fields)
    assert [process.wait(timeout=300) for process in processes] == [0, 0], output(
        two, 0
    )
    runs.finish(one, fields, cache, devices=8, quick=True)
    assert len(losses(one)) == 11
    assert abs(losses(one)[0] - losses(two)[0]) < 1e-6
    np.testing.assert_allclose(losses(two), losses(one), rtol=0, atol=1e-3)
    assert_same_evaluation(two, one, atol=1e-3)

    # Only process 0 tells and writes.
    assert "test accuracy" in output(two, 0) and "attention" in output(two, 0)
    assert "accuracy" not in output(two, 1) and "attention" not in output(two, 1)
    assert len(list((two / "tensorboard").iterdir())) == 1
    assert {path.name for path in two.iterdir()} == {
        path.name for path in one.iterdir()
    }


def test_a_host_dies_and_the_run_goes_on(tmp_path, cache, start_two):
    """The first is killed, then one is asked to stop; one process does the rest."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    fields = runs.DENSE | FIELDS | {"model.depth": 1, "epochs": 2}
    fields["checkpoint_every_steps"] = 3
    processes = start_two(run, fields)
    wait_for_step(run, 4, processes)
    processes[0].kill()
    killed = time.monotonic()
    assert processes[1].wait(timeout=60) == 1
    last = output(run, 1).strip().splitlines()[-1]
    assert last.startswith(f"error: process 1 of 2 {GONE}"), last
    assert time.monotonic() - killed < 60

    processes = start_two(run, fields)
    wait_for_step(run, 8, processes)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=60) for process in processes] == [143, 143]
    step = Checkpoints(run).latest_step()
    for process in (0, 1):
        last = output(run, process).strip().splitlines()[-1]
        assert last.startswith(f"error: stopped at step {step}; the same command")
    assert "going on from step 3 " in output(run, 0)
    assert train_lines(run)[-1]["step"] == step >= 8

    runs.finish(run, fields, cache, devices=8, quick=True)
    runs.finish(whole, fields, cache, devices=8, quick=True)
    assert [line["step"] for line in train_lines(run)] == [*range(1, 23)]
    np.testing.assert_allclose(losses(run), losses(whole), rtol=0, atol=1e-5)
    assert_same_evaluation(run, whole, atol=1e-5)
    assert_same_checkpoints(run, whole, atol=1e-3)


def test_hosts_that_mean_different_runs_are_refused(tmp_path, start_two):
    """Both name the field, and leave no folder behind."""
    run = tmp_path / "run"
    processes = start_two(run, runs.SMALL, lr=0.5)
    assert [process.wait(timeout=100) for process in processes] == [2, 2]
    for process in (0, 1):
        last = output(run, process).strip().splitlines()[-1]
        assert last.startswith("error: config.lr is 0.5 on process 1, but 0.016 on")
    assert not run.exists()
