"""A trainer with a loss of one's own, as docs/own_trainer.md makes it."""

import math
import shutil

import pytest

from imagepiece_jax.training.config import RunConfig
from tests import runs, test_readme
from tests.training.states import assert_same

PAGE = test_readme.DOCS / "own_trainer.md"
# 1,438 digits, 479 a step: three steps.
FIELDS = runs.DENSE | {"batch_size": 479, "epochs": 1, "warmup_epochs": 0.0}
FIELDS |= {"model.depth": 1, "model.stem": "patch", "checkpoint_every_steps": 2}


def train(workdir):
    """(lines of metrics, arrays of the newest checkpoint) after the page's script."""
    config = RunConfig.from_config(runs.configured(FIELDS))
    test_readme.run(PAGE, "import dataclasses", {"config": config})
    return runs.computed(workdir), runs.stored(workdir, "latest")


@pytest.mark.usefixtures("quickly_begun")
def test_the_page_trains_with_a_loss_of_ones_own(tmp_path, monkeypatch, capsys):
    """It is what the page says, and a run that lost its last step resumes with it."""
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / "runs" / "focal"
    lines, arrays = train(workdir)
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [1, 2, 3]
    # Weights that know nothing give each of 10 classes the probability 1/2.
    guessing = 10 * (1 - 1 / 2) ** 2 * math.log(2)
    assert steps[0]["loss"] == pytest.approx(guessing, rel=0.05)
    assert all(line["loss"] == pytest.approx(line["focal"]) for line in steps)
    assert steps[2]["loss"] < steps[0]["loss"]

    for kind in ("latest", "best"):
        shutil.rmtree(workdir / "checkpoints" / kind / "3")
    assert "with the loss" not in capsys.readouterr().out
    resumed, again = train(workdir)
    assert "with the loss focal" in capsys.readouterr().out
    assert resumed == lines
    assert_same(again, arrays)
