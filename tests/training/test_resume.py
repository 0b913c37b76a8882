"""A run that is hurt and gone on with ends as if nothing had happened."""

import signal

import numpy as np
import pytest

from configs import quickstart
from imagepiece_jax.errors import Stopped
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.training import trainer
from imagepiece_jax.training.checkpoint import Checkpoints
from imagepiece_jax.training.metrics import read_metrics
from tests import runs
from tools import faults, tiny_runs

# 1,438 digits, 256 a step: 10 steps, in this process.
SHORT = runs.DENSE | {"batch_size": 256, "epochs": 2, "warmup_epochs": 0.0}


def short(**fields):
    made = quickstart.get_config()
    made.update_from_flattened_dict(SHORT | fields)
    return made


@pytest.mark.slow
def test_the_last_evaluation_is_made_up_for(tmp_path, monkeypatch, capsys):
    """It was given up because of a signal; also: which checkpoints stay for good."""
    fields = {"checkpoint_every_steps": 4, "keep_every_steps": 3}
    evaluate = accuracy.evaluate_each

    def asked_to_stop(step, models, batches):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(step, models, batches)

    monkeypatch.setattr(accuracy, "evaluate_each", asked_to_stop)
    with pytest.raises(Stopped, match="stopped at step 10") as stopped:
        trainer.train_and_evaluate(short(**fields), tmp_path)
    assert stopped.value.signum == signal.SIGTERM
    assert {line["kind"] for line in read_metrics(tmp_path)} == {"train"}
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints/latest").iterdir())
    assert kept == [3, 6, 9, 10]

    monkeypatch.setattr(accuracy, "evaluate_each", evaluate)
    last = trainer.train_and_evaluate(short(**fields), tmp_path)
    assert "resuming from step 10 of 10" in capsys.readouterr().out
    assert read_metrics(tmp_path)[-1]["kind"] == "eval"
    assert read_metrics(tmp_path)[-1]["acc1"] == last["acc1"]
    assert trainer.train_and_evaluate(short(**fields), tmp_path) == last
    assert "this run is complete: 10 steps" in capsys.readouterr().out
    assert Checkpoints(tmp_path).restore_variables("best")["step"] == 10


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    return tiny_runs.Course(tmp_path_factory.mktemp("course"))


def _met(hurt, trial, *args):
    """The row of `hurt`, tried until its moment is met."""
    while (row := hurt(trial, *args)) is None:
        assert trial.step() < tiny_runs.STEPS
    return row


@pytest.mark.slow
def test_a_run_that_much_happens_to_ends_bit_identical(course):
    """One after the other, to one run: what the drill does to one run each."""
    trial, rng = course.trial("hurt"), np.random.default_rng(0)
    delay = rng.uniform(0, 0.02, size=2)
    rows = [faults.kill(trial, 3, delay[0])]  # before any checkpoint
    rows.append(_met(faults.kill_in_save, trial, trial.step() + 1, delay[1] / 4))
    rows.append(_met(faults.terminate_in_evaluation, trial))
    step = trial.step()
    rows.append(faults.vanish(trial, step + 3))

    assert all(row.passed for row in rows), rows
    assert [row.status for row in rows] == [137, 137, 143, 1]
    assert "during a save" in rows[1].moment
    said = [row.said for row in rows]
    assert said[2].endswith(f"at step {step}; the same command resumes from there")
    assert said[3].startswith("WORKDIR has vanished, or is not the folder that")
    assert 0 < trial.finish() < tiny_runs.STEPS
    assert trial.outcome() == course.expected


@pytest.mark.slow
def test_another_config_is_refused_and_changes_nothing(course):
    """The undisturbed run itself: it has every step and every evaluation."""
    before = read_metrics(course.whole.workdir)
    steps = [line["step"] for line in before if line["kind"] == "train"]
    assert steps == [*range(1, tiny_runs.STEPS + 1)]
    assert [line["step"] for line in before if line["kind"] == "eval"] == [
        *range(tiny_runs.EPOCH, tiny_runs.STEPS + 1, tiny_runs.EPOCH)
    ]
    other = tiny_runs.Trial(
        course.whole.workdir, course.folder / "cache", {"lr": 0.001}
    )
    other.start()
    assert other.end() == 2
    assert "lr = 0.016" in other.said()
    assert read_metrics(course.whole.workdir) == before
    assert Checkpoints(course.whole.workdir).latest_step() == tiny_runs.STEPS
