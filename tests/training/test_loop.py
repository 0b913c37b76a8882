"""A whole run in this process: what it leaves, and how it stops."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import quickstart
from imagepiece_jax.errors import RunError
from imagepiece_jax.training import loop
from imagepiece_jax.training.checkpoint import Checkpoints
from imagepiece_jax.training.metrics import read_metrics
from tests import runs

# 1,438 digits, 256 a step: 5 steps an epoch.
FIELDS = runs.SMALL | {
    "batch_size": 256,
    "eval_batch_size": 359,
    "epochs": 2,
    "warmup_epochs": 0.0,
}


def config(**fields):
    made = quickstart.get_config()
    made.update_from_flattened_dict(FIELDS | fields)
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    last = loop.train_and_evaluate(config(pictures=2), workdir)
    return workdir, last


def test_metrics_have_every_step_and_both_evaluations(finished):
    workdir, last = finished
    lines = read_metrics(workdir)
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train] == list(range(1, 11))
    wanted = {"step", "epoch", "loss", "acc1", "acc5", "lr", "throughput"}
    assert wanted <= set(train[0])
    evaluated = [line for line in lines if line["kind"] == "eval"]
    assert [line["step"] for line in evaluated] == [10]
    assert evaluated[0]["images"] == 359  # 359 = 36 * 10 - 1: every image of the fifth
    assert evaluated[0]["acc1"] == last["acc1"]
    np.testing.assert_allclose(train[-1]["epoch"], 2.0)


def test_run_leaves_config_versions_checkpoints_and_picture(finished):
    workdir, _ = finished
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["batch_size"] == 256 and saved["reduction"]["name"] == "imagepiece"
    start = json.loads((workdir / "run.json").read_text())["starts"][0]
    assert {"git", "python", "libraries", "devices"} <= set(start)
    assert Checkpoints(workdir).latest_step() == 10
    with Image.open(workdir / "tokens.png") as picture:
        assert picture.width > 500
    assert list((workdir / "tensorboard").iterdir())


def test_a_finished_run_is_not_trained_again(finished, capsys):
    workdir, last = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    assert loop.train_and_evaluate(config(pictures=2), workdir) == last
    assert "this run is complete: 10 steps" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_dry_run_says_what_would_happen_and_writes_nothing(tmp_path, capsys):
    loop.train_and_evaluate(config(), tmp_path / "run", dry_run=True)
    printed = capsys.readouterr().out
    assert "GMACs" in printed and "MB of working space" in printed
    assert "10 steps: 2 epochs of 5" in printed
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    """The step before is good; its checkpoint stays what a resumed run starts from."""
    fields = {"lr": 1e30, "checkpoint_every_steps": 1}
    with pytest.raises(RunError, match=r"(loss|grad_norm) is nan at step \d+.*kept"):
        loop.train_and_evaluate(config(**fields), tmp_path)
    saved = Checkpoints(tmp_path)
    step = saved.latest_step()
    assert read_metrics(tmp_path)[-1]["step"] == step
    assert np.isfinite(read_metrics(tmp_path)[-1]["loss"])
