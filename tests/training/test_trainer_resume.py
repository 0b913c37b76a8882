"""A run that is killed or stopped and resumed ends like an undisturbed one."""

import os
import shutil
import signal

import pytest

from imagepiece_jax.errors import Stopped
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.training import trainer
from imagepiece_jax.training.logging import read_metrics
from tests import runs

# 1,438 digits, 256 a step: 10 steps, in this process, of two programs: all tokens in
# the first epoch, half of them in the second.
SHORT = runs.DENSE | {"batch_size": 256, "epochs": 2, "warmup_epochs": 0.0}
SHORT |= {"model.depth": 1, "model.stem": "patch"}


def short(**fields):
    config = runs.configured(SHORT, **fields)
    config.reduction = "evit:keep_rate=0.5:blocks=(0,):rate_warmup_epochs=1"
    return config


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_begun")
def test_an_abandoned_evaluation_is_repeated(tmp_path, monkeypatch, capsys):
    """The last one, after a signal; and the end is the same from a kept checkpoint."""
    runs.compile_once(monkeypatch)
    fields = {"checkpoint_every_steps": 4, "keep_every_steps": 3}
    evaluate = accuracy.evaluate_each
    epochs = []
    compiled_step = trainer.Run.compiled_step

    def compiled(run, epoch):
        epochs.append(epoch)
        return compiled_step(run, epoch)

    monkeypatch.setattr(trainer.Run, "compiled_step", compiled)

    def asked_to_stop(step, models, batches):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(step, models, batches)

    monkeypatch.setattr(accuracy, "evaluate_each", asked_to_stop)
    with pytest.raises(Stopped, match="stopped at step 10") as stopped:
        runs.train(short(**fields), tmp_path)
    assert stopped.value.signum == signal.SIGTERM
    assert {line["kind"] for line in read_metrics(tmp_path)} == {"train"}
    stored = sorted(int(p.name) for p in (tmp_path / "checkpoints/latest").iterdir())
    assert stored == [3, 6, 9, 10]
    assert epochs == [0, 1]
    state = tmp_path / "checkpoints" / "latest" / "10" / "state"
    written = state.stat()

    monkeypatch.setattr(accuracy, "evaluate_each", evaluate)
    last = runs.train(short(**fields), tmp_path)
    assert "resuming from step 10 of 10" in capsys.readouterr().out
    assert read_metrics(tmp_path)[-1]["kind"] == "eval"
    assert read_metrics(tmp_path)[-1]["acc1"] == last["acc1"]
    assert os.path.samestat(state.stat(), written)  # a kill could not have lost it
    assert runs.train(short(**fields), tmp_path) == last
    assert "this run is complete: 10 steps" in capsys.readouterr().out
    assert runs.stored(tmp_path, "best")["step"] == 10

    again = shutil.copytree(tmp_path, tmp_path / "again")
    shutil.rmtree(again / "checkpoints" / "best")
    for step in stored[2:]:
        shutil.rmtree(again / "checkpoints" / "latest" / f"{step}")
    assert runs.train(short(**fields), again) == last
    assert "resuming from step 6 of 10" in capsys.readouterr().out
    assert epochs == [0, 1, 1]
    assert runs.computed(again) == runs.computed(tmp_path)
