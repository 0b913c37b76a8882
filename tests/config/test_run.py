"""The config of a run: values out of range are refused, and what is made of it."""

import json
import re

import numpy as np
import pytest

from configs import base
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.reduction import Reduction
from tests.refused import refused
from tests.runs import configured

COUNTS = """num_classes keep_every_steps data.workers data.threads
    data.shift augment.layers max_skipped_steps"""
POSITIVE = """image_size epochs batch_size eval_batch_size grad_accum_steps
    eval_every_epochs checkpoint_every_steps log_every_steps data.repeats"""
NUMBERS = """augment.magnitude_std lr min_lr warmup_lr warmup_epochs weight_decay eps
    clip_grad_norm mixup cutmix"""
SHARES = """augment.prob augment.erase_prob label_smoothing mixup_prob
    mixup_switch_prob ema_decay distill.weight"""
RANGES = {
    "whole numbers of at least 0": COUNTS,
    "whole numbers of at least 1": POSITIVE,
    "whole numbers from 0 to 4294967295": "seed",
    "finite numbers of at least 0": NUMBERS,
    "numbers from 0 to 1": SHARES,
    "numbers from 0 to 10": "augment.magnitude",
    "finite numbers of at least 0.01": "distill.temperature",
}
ALLOWED = {}  # by field
for values, names in RANGES.items():
    ALLOWED |= dict.fromkeys(names.split(), values)


@pytest.mark.parametrize(
    "field, allowed",
    sorted((field, allowed) for field, allowed in ALLOWED.items()),
)
def test_numbers_out_of_range(field, allowed):
    low, *high = map(float, re.findall(r"[0-9.]+", allowed))
    kind = int if "whole" in allowed else float
    RunConfig.from_config(configured(**{field: kind(low)}))
    for value in (low - 1, *(bound + 1 for bound in high)):
        value = kind(value)
        with refused(f"config.{field}", value) as caught:
            RunConfig.from_config(configured(**{field: value}))
        assert caught.value.allowed == allowed


@pytest.mark.parametrize(
    "changes, field, allowed",
    [
        ({"init.fresh": "head"}, "init.fresh", "names of parts"),
        ({"init.fresh": (3,)}, "init.fresh", "names of parts"),
        *(
            ({"betas": value}, "betas", "two numbers of at least 0 and below 1")
            for value in ((0.9,), (0.9, 1.0), (-0.1, 0.9), ("a", 0.9), ())
        ),
        *(
            ({"data.area": value}, "data.area", "smaller one first")
            for value in ((0.0, 1.0), (0.5, 0.4), (0.5, 1.5), (1.0,))
        ),
    ],
)
def test_a_value_that_is_not_allowed_is_named(changes, field, allowed):
    config = configured().to_dict()
    for name, value in changes.items():
        group, _, name = name.rpartition(".")
        (config[group] if group else config)[name] = value
    with pytest.raises(InputError) as caught:
        RunConfig.from_config(config)
    error = caught.value
    value = changes[field]
    assert (error.field, repr(error.value)) == (f"config.{field}", repr(value))
    assert allowed in error.allowed


@pytest.mark.parametrize("asked", ["0.7", "evit:macs=0.7", "diffrate:macs=0.7"])
def test_a_run_has_its_reduction_in_counts(asked):
    """In its config.json, which makes the same model again."""
    config = configured()
    with config.unlocked():
        del config.reduction
        config.reduction = asked
    run = RunConfig.from_config(config).with_counts()
    written = json.loads(json.dumps(run.to_dict()))
    assert "macs" not in written["reduction"]
    model = run.model.create(Reduction.of_run(written))
    assert model == run.create_model()
    assert model.reduction == run.model.create(asked).reduction
    again = RunConfig.from_config(written)
    assert again.with_counts().to_dict()["reduction"] == written["reduction"]


@pytest.mark.parametrize(
    "group", ["model", "reduction", "teacher", "init", "data", "distill"]
)
def test_a_config_without_one_of_its_groups_is_refused(group):
    values = (None, 3) if group == "reduction" else (None, "digits", 3)
    for value in values:
        config = base.get_config().to_dict() | {group: value}
        found = rf"config.{group}(\..* is missing; a config| is .*; allowed: the fi)"
        with pytest.raises(InputError, match=found):
            RunConfig.from_config(config)


def test_models_of_a_config():
    config = configured(**{"model.drop_path_rate": 0.2, "model.dtype": "bfloat16"})
    model = RunConfig.from_config(config).create_model(axis_name="devices")
    assert [layer.attn_tokens for layer in model.plan] == [65, 59, 54, 44, 40, 36]
    assert (model.stem, model.num_classes, model.embed_dim) == ("conv", 10, 64)
    assert (model.drop_path_rate, model.dtype) == (0.2, np.dtype("bfloat16"))
    assert model.axis_name == "devices"
    dense = RunConfig.from_config(config).create_dense()
    assert [layer.mlp_tokens for layer in dense.plan] == [65] * 6
    patch = RunConfig.from_config(config).create_dense(stem="patch")
    assert (dense.stem, patch.stem) == ("conv", "patch")
