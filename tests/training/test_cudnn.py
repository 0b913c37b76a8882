"""Training on odd lengths with cuDNN, whose backward pass refuses them."""

import jax
import numpy as np
import pytest

from imagepiece_jax.training import trainer
from imagepiece_jax.training.config import RunConfig
from tests import runs

# 1,438 digits, 719 a step: two steps. 64 image tokens and the class token: 65.
FIELDS = runs.SMALL | {
    "model.embed_dim": 64,
    "model.dtype": "bfloat16",
    "batch_size": 719,
    "epochs": 1,
    "warmup_epochs": 0.0,
}


def check_training(workdir, attention):
    """Finite losses, and those of XLA's attention up to bfloat16."""
    losses = []
    for name in ("xla", attention):
        made = runs.config(FIELDS, **{"model.attention": name})
        plan = RunConfig.from_config(made).create_model().plan
        assert any(layer.attn_tokens % 2 for layer in plan), plan
        trainer.train_and_evaluate(made, workdir / name)
        train = runs.lines(workdir / name, "train")
        losses.append([line["loss"] for line in train])
    assert len(losses[0]) == 2
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=0.02)


@pytest.mark.gpu
def test_training_on_odd_lengths(tmp_path):
    if jax.default_backend() != "gpu":
        pytest.skip("no GPU here")
    check_training(tmp_path, "cudnn")
