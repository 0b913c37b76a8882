"""The config of a run: values out of range are refused, and what is made of it."""

import json
import re

import numpy as np
import pytest
from ml_collections import config_dict

from configs import base
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.reduction import Reduction
from imagepiece_jax.training.cluster import run_dir
from imagepiece_jax.weights import location
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


@pytest.mark.parametrize("name", ["auto", "evit", "imagepiece", "diffrate"])
def test_a_model_of_a_run_keeps_the_text_of_a_method_with_a_score(name):
    config = configured()
    config.reduction = config_dict.ConfigDict({"name": name, "macs": 0.7})
    run = RunConfig.from_config(config).with_counts()
    model = run.model.create(Reduction.of_run(run.to_dict()))
    assert model == run.create_model()
    typed = run.model.create({"name": name, "macs": 0.7})
    assert model.reduction.words == typed.reduction.words
    assert model.reduction == typed.reduction


def test_a_run_keeps_the_text_that_asked_for_its_reduction(tmp_path):
    """In its config.json, which one without that text does not contradict."""
    config = configured()
    config.reduction = config_dict.ConfigDict("tome:macs=0.7")
    run = RunConfig.from_config(config)
    assert "label" not in run.to_dict()["reduction"]
    written = run.with_counts().to_dict()
    assert written["reduction"]["label"] == "tome macs=0.7"
    (tmp_path / "config.json").write_text(json.dumps(written))
    reduction = Reduction.of_run(location.find(tmp_path).config)
    assert reduction.words == "tome macs=0.7"
    assert Reduction.read(reduction.fields).words == "tome macs=0.7"
    again = RunConfig.from_config(written)
    assert again.with_counts().to_dict()["reduction"] == written["reduction"]
    del written["reduction"]["label"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    run_dir.check_config(tmp_path, run.with_counts().to_dict())


@pytest.mark.parametrize(
    "group", ["model", "reduction", "teacher", "init", "data", "distill"]
)
def test_a_config_without_one_of_its_groups_is_refused(group):
    for value in (None, "digits", 3):
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
