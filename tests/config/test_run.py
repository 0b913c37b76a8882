"""The config of a run: values out of range are refused, and what is made of it."""

import numpy as np
import pytest

from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.config.run_files import FORMAT as RUN_FORMAT
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.reduction import Reduction
from tests.runs import configured

COUNTS = """num_classes keep_every_steps data.workers data.threads
    data.shift augment.layers max_skipped_steps seed"""
POSITIVE = """image_size epochs batch_size eval_batch_size grad_accum_steps
    eval_every_epochs checkpoint_every_steps log_every_steps data.repeats"""
NUMBERS = """augment.magnitude_std lr min_lr warmup_lr warmup_epochs weight_decay eps
    clip_grad_norm mixup cutmix"""
SHARES = """augment.prob augment.erase_prob label_smoothing mixup_prob
    mixup_switch_prob ema_decay distill.weight"""
WRONG = {  # values of fields
    "seed": 2**32,
    "lr_offset": 2,
    "distill.temperature": 0.0,
    "distill.kind": "warm",
    "augment.magnitude": 10.5,
    "betas": (0.9, 1.0),
    "data.area": (0.5, 0.4),
    "data.crop": "large",
    "data.eval_crop": 1.5,
    "data.eval_rule": "mine",
    "reduction": "tome:r=-1",
    "model.stem": "wide",
}
ROWS = [(name, -1) for name in COUNTS.split()]
ROWS += [(name, 0) for name in POSITIVE.split()]
ROWS += [(name, -1.0) for name in NUMBERS.split()]
ROWS += [(name, 1.5) for name in SHARES.split()]
ROWS += [("lr", float("nan")), ("betas", (0.9,)), ("data.area", (0.0, 1.0))]
ROWS += WRONG.items()


@pytest.mark.parametrize("field, value", ROWS)
def test_a_value_out_of_range_is_named(field, value):
    config = configured(**{field: value})
    leaf = field.rpartition(".")[2]
    with pytest.raises(InputError, match=f"^config.*{leaf} "):
        RunConfig.from_config(config)


def test_a_config_of_a_run_has_its_format_counts_and_normalization():
    run = RunConfig.from_config(configured(reduction="tome:macs=0.7")).with_counts()
    written = run.to_dict()
    assert written["format"] == RUN_FORMAT
    assert "macs" not in written["reduction"]
    assert Reduction.read(written["reduction"]) == run.reduction
    assert (written["model"]["mean"], written["model"]["std"]) == (None, None)
    again = RunConfig.from_config(written)
    assert again == run
    assert again.create_model() == run.create_model()


def test_models_of_a_config():
    config = configured(**{"model.drop_path_rate": 0.2, "model.dtype": "bfloat16"})
    model = RunConfig.from_config(config).create_model(axis_name="devices")
    assert [layer.attn_tokens for layer in model.plan] == [65, 59, 54, 44, 40, 36]
    assert (model.config.stem, model.config.num_classes, model.config.embed_dim) == (
        "conv",
        10,
        64,
    )
    assert (model.execution.drop_path_rate, model.execution.dtype) == (
        0.2,
        np.dtype("bfloat16"),
    )
    assert model.execution.axis_name == "devices"
    dense = RunConfig.from_config(config).create_dense()
    assert [layer.mlp_tokens for layer in dense.plan] == [65] * 6
    patch = RunConfig.from_config(config).create_dense(stem="patch")
    assert (dense.config.stem, patch.stem) == ("conv", "patch")
