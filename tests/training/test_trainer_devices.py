"""Eight devices compute the same as one, hosts agree, and cuDNN takes odd lengths."""

import jax
import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data.sources import registry
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.weights.save import save
from tests import forked, programs, runs

# Everything that draws is on, in two micro-batches: 320 digits, 64 a step, 10 steps.
FIELDS = runs.DENSE | {
    "model.drop_path_rate": 0.2,
    "mixup": 0.8,
    "cutmix": 1.0,
    "batch_size": 64,
    "grad_accum_steps": 2,
    "epochs": 2,
    "warmup_epochs": 0.4,
    "eval_every_epochs": 2,
    "eval_batch_size": 16,
}


@pytest.fixture
def some_digits(tmp_path):
    source = registry.open_source("digits", "train")
    rows = ["filename,label,split"]
    for index in range(336):
        pixels, label, *_ = source[index]
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{label},{'train' if index < 320 else 'val'}")
    path = tmp_path / "digits.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def losses(workdir):
    return np.array([line["loss"] for line in runs.lines(workdir, "train")])


@pytest.mark.slow
def test_eight_devices_train_like_one(tmp_path, some_digits):
    """Dense, as rounding may flip near ties of a reduction."""
    config = runs.configured(FIELDS)
    weights = tmp_path / "weights"
    model = RunConfig.from_config(config).create_model()
    save(Pretrained(model, runs.untrained(model, 0)), weights)
    fields = FIELDS | {"data.name": f"csv:{some_digits}", "init.weights": f"{weights}"}
    cache = programs.of_processes(tmp_path / "cache")
    running = runs.start(tmp_path / "8", fields, cache, devices=8, quick=True)
    config.update_from_flattened_dict(fields)
    runs.train(config, tmp_path / "1")
    assert running.wait(timeout=300) == 0
    one = losses(tmp_path / "1")
    eight = losses(tmp_path / "8")
    assert len(one) == 10
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_hosts_with_different_configs_are_refused(tmp_path):
    """Both name the field and leave no folder; see tests/tools/test_drill.py."""
    run = tmp_path / "run"
    processes = runs.start_two(run, runs.SMALL, tmp_path / "cache", lr=0.5)
    assert forked.statuses(processes, timeout=100) == [2, 2]
    for process in (0, 1):
        output = run.with_name(f"run.{process}.log").read_text()
        last = output.strip().splitlines()[-1]
        assert last.startswith("error: config.lr is 0.5 on process 1, but 0.016 on")
    assert not run.exists()


# 1,438 digits, 719 a step: two steps. 64 image tokens and the class token: 65.
ODD = runs.SMALL | {"model.embed_dim": 64, "model.dtype": "bfloat16"}
ODD |= {"batch_size": 719, "epochs": 1, "warmup_epochs": 0.0}


@pytest.mark.gpu
def test_cudnn_trains_on_odd_lengths(tmp_path):
    """Its backward pass refuses them: losses are XLA's attention's up to bfloat16."""
    if jax.default_backend() != "gpu":
        pytest.skip("no GPU here")
    found = []
    for attention in ("xla", "cudnn"):
        config = runs.configured(ODD, **{"model.attention": attention})
        plan = RunConfig.from_config(config).create_model().plan
        assert any(layer.attn_tokens % 2 for layer in plan), plan
        runs.train(config, tmp_path / attention)
        found.append(losses(tmp_path / attention))
    assert len(found[0]) == 2
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=0.02)
