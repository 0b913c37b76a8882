"""Eight devices compute the same as one: batches, draws, statistics and gradients."""

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.common import parallel
from imagepiece_jax.data import registry
from imagepiece_jax.models import convert
from imagepiece_jax.training import trainer
from imagepiece_jax.training.config import RunConfig
from tests import runs

# Everything that draws is on, in two micro-batches: 320 digits, 64 a step, 10 steps.
FIELDS = runs.DENSE | {
    "model.drop_path_rate": 0.2,
    "mixup": 0.8,
    "cutmix": 1.0,
    "num_classes": 10,
    "batch_size": 64,
    "grad_accum_steps": 2,
    "epochs": 2,
    "warmup_epochs": 0.4,
    "eval_every_epochs": 2,
    "eval_batch_size": 16,
}


@pytest.fixture
def some_digits(tmp_path):
    """CSV file of 320 digits to train with, and 16 more."""
    source, rows = registry.open_source("digits", "train"), ["filename,label,split"]
    for index in range(336):
        pixels, label = source.read(index)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{label},{'train' if index < 320 else 'val'}")
    path = tmp_path / "digits.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def losses(workdir):
    return np.array([line["loss"] for line in runs.lines(workdir, "train")])


@pytest.mark.slow
def test_eight_devices_train_like_one(tmp_path, some_digits, monkeypatch):
    """Dense: a near tie in a reduction may flip a rank once rounding differs.

    The one device is this process's, and steps are mapped over it by `jax.shard_map`.
    Both begin with weights of a file.
    """
    monkeypatch.setattr(parallel, "FORM", "shard_map")
    config, weights = runs.config(FIELDS), tmp_path / "weights.npz"
    model = RunConfig.from_config(config).create_model()
    np.savez(weights, **convert.to_timm(runs.untrained(model, config.image_size, 0)))
    fields = FIELDS | {"data.name": f"csv:{some_digits}", "init.weights": f"{weights}"}
    cache = tmp_path / "cache"
    running = runs.start(tmp_path / "8", fields, cache, devices=8, quick=True)
    config.update_from_flattened_dict(fields)
    trainer.train_and_evaluate(config, tmp_path / "1")
    assert running.wait(timeout=300) == 0
    one, eight = (losses(tmp_path / name) for name in ("1", "8"))
    assert len(one) == 10
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5)
