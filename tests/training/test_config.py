"""The config of a run: values out of range are refused, and what is made of it."""

import dataclasses
import math
import re
import types

import jax
import numpy as np
import pytest
from PIL import Image

from configs import base, deit_s_evit
from imagepiece_jax.common.layout import Placement
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.train_step import batch_shapes
from tests.runs import config

COUNTS = """num_classes keep_every_steps pictures data.workers data.threads data.canvas
    data.shift augment.layers max_skipped_steps"""
POSITIVE = """image_size epochs batch_size eval_batch_size grad_accum_steps
    eval_every_epochs checkpoint_every_steps log_every_steps data.repeats"""
NUMBERS = """augment.magnitude_std lr min_lr warmup_lr warmup_epochs weight_decay eps
    clip_grad_norm mixup cutmix"""
SHARES = """augment.prob augment.erase_prob label_smoothing mixup_prob
    mixup_switch_prob ema_decay distill.weight"""
RANGES = {
    "whole numbers from 0": COUNTS,
    "whole numbers from 1": POSITIVE,
    "whole numbers from 0 to 4294967295": "seed",
    "numbers from 0": NUMBERS,
    "numbers from 0 to 1": SHARES,
    "numbers from 0 to 10": "augment.magnitude",
    "numbers from 0.01": "distill.temperature",
}


@pytest.mark.parametrize(
    "field, allowed",
    [(field, allowed) for allowed, names in RANGES.items() for field in names.split()],
)
def test_numbers_out_of_range(field, allowed):
    low, *high = map(float, re.findall(r"[0-9.]+", allowed))
    kind = int if "whole" in allowed else float
    RunConfig.from_config(config(**{field: kind(low)}))
    for value in (low - 1, *(bound + 1 for bound in high)):
        value = kind(value)
        with pytest.raises(InputError) as caught:
            RunConfig.from_config(config(**{field: value}))
        error = caught.value
        assert (error.field, error.value) == (f"config.{field}", value)
        assert error.allowed == allowed


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        *(("lr", value, "numbers from 0") for value in (math.nan, math.inf)),
        ("init.fresh", "head", "names of parts"),
        *(
            ("betas", value, "two numbers from 0 to below 1")
            for value in ((0.9,), (0.9, 1.0), (-0.1, 0.9), ("a", 0.9), ())
        ),
        ("best_by", "ema", "'weights', 'averages'"),
        *(
            ("data.area", value, "lower one first")
            for value in ((0.0, 1.0), (0.5, 0.4), (0.5, 1.5), (1.0,))
        ),
        ("data.crop", "wild", "random_resized"),
        ("data.resize", "big", "deit"),
        ("lr_offset", 2, "0, 1"),
        ("init.fresh", (3,), "names of parts"),
        ("distill.kind", "firm", "'none', 'soft', 'hard'"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(field, value, allowed):
    group, _, name = field.rpartition(".")
    made = config().to_dict()
    (made[group] if group else made)[name] = value
    with pytest.raises(InputError) as caught:
        RunConfig.from_config(made)
    error = caught.value
    assert (error.field, repr(error.value)) == (f"config.{field}", repr(value))
    assert allowed in error.allowed


def test_without_averages_none_is_the_best():
    with pytest.raises(InputError, match="config.best_by is 'averages', but ema_decay"):
        RunConfig.from_config(config(best_by="averages", ema_decay=0.0))


def test_a_canvas_holds_what_is_cropped_from_it():
    made = config(**{"data.canvas": 15, "data.crop": "random_resized"})
    with pytest.raises(InputError, match="data.canvas is 15; allowed: 0 and .*16"):
        RunConfig.from_config(made)
    made.data.canvas = 16
    made.data.crop = "shift"
    with pytest.raises(InputError, match="config.data.crop is 'shift' with canvas=16;"):
        RunConfig.from_config(made)
    made.data.crop = "random_resized"
    RunConfig.from_config(made)
    assert RunConfig.from_config(made).train_transform().shape == (16, 16)


@pytest.mark.parametrize(
    "removed", ["eval_batch_size", "eps", "data.name", "teacher.weights", "init.fresh"]
)
def test_a_config_that_does_not_start_from_base(removed):
    made, (*groups, field) = config(), removed.split(".")
    with made.unlocked():
        del (made[groups[0]] if groups else made)[field]
    message = f"config.{removed} is missing; a config starts from configs/base.py"
    with pytest.raises(InputError, match=message):
        RunConfig.from_config(made)


def test_batches_must_divide_over_devices_and_micro_batches():
    eight = Placement(local_devices=8)
    RunConfig.from_config(config(batch_size=64)).check_training(eight)
    message = r"config.batch_size is 60; .* multiples of .* = 8 \* 1"
    with pytest.raises(InputError, match=message):
        RunConfig.from_config(config(batch_size=60)).check_training(eight)
    two_each = dataclasses.replace(eight, accumulation=2)
    with pytest.raises(InputError, match=r"config.batch_size is 40; .* = 8 \* 2"):
        RunConfig.from_config(config(batch_size=40)).check_training(two_each)


def test_mixing_needs_pairs():
    message = "config.batch_size is 6; allowed: even micro-batches, not 3"
    placement = Placement(accumulation=2)
    for on in ({"mixup": 0.8}, {"cutmix": 1.0}):
        made = config(batch_size=6, grad_accum_steps=2, **on)
        with pytest.raises(InputError, match=message):
            RunConfig.from_config(made).check_training(placement)
        made.mixup_prob = 0.0
        RunConfig.from_config(made).check_training(placement)
    made = config(batch_size=6, grad_accum_steps=2)
    RunConfig.from_config(made).check_training(placement)


@pytest.mark.parametrize(
    "images, count, size",
    [
        *((1000, *row) for row in ((1, 359), (2, 360), (8, 360), (100, 400))),
        *((40, *row) for row in ((1, 40), (8, 40), (16, 48))),
    ],
)
def test_evaluation_batch_is_rounded_up(images, count, size):
    """A small set is one batch of its own size."""
    run = RunConfig.from_config(config(eval_batch_size=359))
    assert run.rounded_eval_batch(Placement(local_devices=count), images) == size


def test_length():
    """1281167 // 1024 = 1251 steps an epoch."""
    length = RunConfig.from_config(base.get_config()).length(1281167)
    assert (length.steps_per_epoch, length.steps) == (1251, 375300)


def test_flop_of_a_run_is_that_of_every_epoch_and_of_the_teacher():
    """DeiT-S by hand; a rate that warms up; a teacher, which only looks at images."""
    images = 1281167
    deit = RunConfig.from_config(base.get_config())
    by_hand = 300 * 1251 * 1024 * 3 * 2 * 4.6e9
    assert deit.training_flop(images) == pytest.approx(by_hand, rel=1e-3)
    made = config(epochs=4)
    made.reduction = deit_s_evit.get_config().reduction
    made.reduction.update(rate_warmup_start=1, rate_warmup_epochs=2, blocks=(1, 2, 3))
    evit = RunConfig.from_config(made)
    macs = [model_macs(evit.create_train_model(epoch), 16) for epoch in range(4)]
    assert evit.macs_by_epoch() == macs == sorted(macs, reverse=True)
    assert len(set(macs)) == 3 and macs[0] == model_macs(evit.create_dense(), 16)
    assert evit.training_flop(640) == 2 * 10 * 64 * 3 * sum(macs)
    made.distill.kind = "soft"
    taught = RunConfig.from_config(made).training_flop(640)
    assert taught == 2 * 10 * 64 * (3 * sum(macs) + 4 * macs[0])
    known = RunConfig.from_config(made).training_flop(640, teacher_macs=10)
    assert known == 2 * 10 * 64 * (3 * sum(macs) + 4 * 10)


def test_sources_and_transforms_are_those_of_the_config():
    made = config()
    run = RunConfig.from_config(made)
    train, val = run.source("train"), run.source("val")
    assert (len(train), len(val)) == (1438, 359)
    image, _ = val.read(0)
    assert (run.preprocessing()(image) == image).all()
    rng = np.random.default_rng(0)
    moved = run.train_transform()(image, rng)
    assert moved.shape == image.shape and not (moved == image).all()


def test_shapes_of_a_batch_are_what_the_loader_gives():
    config = base.get_config()
    config.image_size, config.data.canvas = 16, 20
    batch = batch_shapes(RunConfig.from_config(config), (3, 2))
    shapes = jax.tree.map(lambda leaf: leaf.shape, batch)
    assert shapes == {"image": (3, 2, 20, 20, 3), "label": (3, 2), "extent": (3, 2, 2)}
    assert batch["image"].dtype == np.uint8
    config.data.canvas = 0
    batch = batch_shapes(RunConfig.from_config(config), (4, 3, 2))
    assert batch["image"].shape == (4, 3, 2, 16, 16, 3)


@pytest.mark.parametrize(
    "group", ["model", "reduction", "teacher", "init", "data", "distill"]
)
def test_a_config_without_one_of_its_groups_is_refused(group):
    for value in (None, "digits", 3):
        made = base.get_config().to_dict() | {group: value}
        found = rf"config.{group}(\..* is missing; a config| is .*; allowed: the fi)"
        with pytest.raises(InputError, match=found):
            RunConfig.from_config(made)


def test_models_of_a_config():
    made = config(**{"model.drop_path_rate": 0.2, "model.dtype": "bfloat16"})
    model = RunConfig.from_config(made).create_model(axis_name="devices")
    assert [layer.attn_tokens for layer in model.plan] == [65, 59, 54, 44, 40, 36]
    assert (model.stem, model.num_classes, model.embed_dim) == ("conv", 10, 64)
    assert (model.drop_path_rate, model.dtype) == (0.2, np.dtype("bfloat16"))
    assert model.axis_name == "devices"
    dense = RunConfig.from_config(made).create_dense()
    assert [layer.mlp_tokens for layer in dense.plan] == [65] * 6
    patch = RunConfig.from_config(made).create_dense(stem="patch")
    assert (dense.stem, patch.stem) == ("conv", "patch")


@pytest.mark.parametrize("labels, is_noted", [((1, 2), True), ((1, 0), False)])
def test_labels_that_may_count_from_one_are_noted(tmp_path, labels, is_noted):
    rows = ["filename,label"]
    for label in labels:
        Image.new("RGB", (16, 16)).save(tmp_path / f"{label}.png")
        rows.append(f"{label}.png,{label}")
    (tmp_path / "set.csv").write_text("\n".join(rows))
    made, data = config(), f"csv:{tmp_path}/set.csv"
    made.data.name = data
    unknown = dict(class_names=None, names_of_data=None, run=None)
    weights = types.SimpleNamespace(path="w.npz", **unknown)
    source, notes = RunConfig.from_config(made).test_images(weights, limit=1)
    note = f"note: no label of {data} is 0, the lowest is 1; labels count from 0"
    taken = "note: 1 of 2 images are taken, evenly spaced"
    assert len(source) == 1 and notes == [taken, *[note] * is_noted]
