"""The config of a run: values out of range are refused, and what is made of it."""

import dataclasses
import math
import re
import types

import jax
import numpy as np
import pytest
from PIL import Image

from configs import base, deit_s_evit, quickstart
from imagepiece_jax.common.layout import Placement
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.training.config import OptimConfig, RunConfig
from imagepiece_jax.training.optimizer import adamw, create
from imagepiece_jax.training.train_step import batch_shapes


def config(**fields):
    made = quickstart.get_config()
    made.update_from_flattened_dict(fields)
    return made


NUMBERS = {
    "num_classes": "whole numbers from 0",
    "keep_every_steps": "whole numbers from 0",
    "pictures": "whole numbers from 0",
    "data.workers": "whole numbers from 0",
    "data.threads": "whole numbers from 0",
    "data.canvas": "whole numbers from 0",
    "data.shift": "whole numbers from 0",
    "augment.layers": "whole numbers from 0",
    "max_skipped_steps": "whole numbers from 0",
    "image_size": "whole numbers from 1",
    "epochs": "whole numbers from 1",
    "batch_size": "whole numbers from 1",
    "eval_batch_size": "whole numbers from 1",
    "grad_accum_steps": "whole numbers from 1",
    "eval_every_epochs": "whole numbers from 1",
    "checkpoint_every_steps": "whole numbers from 1",
    "log_every_steps": "whole numbers from 1",
    "data.repeats": "whole numbers from 1",
    "augment.magnitude_std": "numbers from 0",
    "lr": "numbers from 0",
    "min_lr": "numbers from 0",
    "warmup_lr": "numbers from 0",
    "warmup_epochs": "numbers from 0",
    "weight_decay": "numbers from 0",
    "eps": "numbers from 0",
    "clip_grad_norm": "numbers from 0",
    "mixup": "numbers from 0",
    "cutmix": "numbers from 0",
    "augment.prob": "numbers from 0 to 1",
    "augment.erase_prob": "numbers from 0 to 1",
    "label_smoothing": "numbers from 0 to 1",
    "mixup_prob": "numbers from 0 to 1",
    "mixup_switch_prob": "numbers from 0 to 1",
    "ema_decay": "numbers from 0 to 1",
    "distill.weight": "numbers from 0 to 1",
    "seed": "whole numbers from 0 to 4294967295",
    "augment.magnitude": "numbers from 0 to 10",
    "distill.temperature": "numbers from 0.01",
}


@pytest.mark.parametrize("field", NUMBERS)
def test_numbers_out_of_range(field):
    low, *high = map(float, re.findall(r"[0-9.]+", NUMBERS[field]))
    kind = int if "whole" in NUMBERS[field] else float
    RunConfig.from_config(config(**{field: kind(low)}))
    for value in (low - 1, *(bound + 1 for bound in high)):
        value = kind(value)
        message = rf"^config\.{field} is {value}; allowed: {NUMBERS[field]}$"
        with pytest.raises(InputError, match=message):
            RunConfig.from_config(config(**{field: value}))


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        *(("lr", value, "numbers from 0") for value in (math.nan, math.inf)),
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
    with pytest.raises(InputError) as error:
        RunConfig.from_config(config(**{field: value}))
    assert (error.value.field, repr(error.value.value)) == (
        f"config.{field}",
        repr(value),
    )
    assert allowed in error.value.allowed


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
    "removed, named",
    [
        ("eval_batch_size", "eval_batch_size"),
        ("data", "data.name"),
        ("eps", "eps"),
        ("teacher.weights", "teacher.weights"),
        ("init.fresh", "init.fresh"),
    ],
)
def test_a_config_that_does_not_start_from_base(removed, named):
    made, (*groups, field) = config(), removed.split(".")
    with made.unlocked():
        del (made[groups[0]] if groups else made)[field]
    message = f"config.{named} is missing; a config starts from configs/base.py"
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
    RunConfig.from_config(config(batch_size=6, grad_accum_steps=2)).check_training(
        placement
    )


@pytest.mark.parametrize("count, size", [(1, 359), (2, 360), (8, 360), (100, 400)])
def test_evaluation_batch_is_rounded_up(count, size):
    run = RunConfig.from_config(config(eval_batch_size=359))
    assert run.rounded_eval_batch(Placement(local_devices=count), 1000) == size


@pytest.mark.parametrize("count, size", [(1, 40), (8, 40), (16, 48)])
def test_a_small_set_is_one_batch_of_its_own_size(count, size):
    run = RunConfig.from_config(config(eval_batch_size=512))
    assert run.rounded_eval_batch(Placement(local_devices=count), 40) == size


def test_length():
    """1281167 // 1024 = 1251 steps an epoch."""
    length = RunConfig.from_config(base.get_config()).length(1281167)
    assert (length.steps_per_epoch, length.steps) == (1251, 375300)


def test_flop_of_a_run_is_that_of_every_epoch_and_of_the_teacher():
    """DeiT-S by hand; a rate that warms up; a teacher, which only looks at images."""
    images = 1281167
    deit = RunConfig.from_config(base.get_config())
    assert deit.training_flop(images) == pytest.approx(
        300 * 1251 * 1024 * 3 * 2 * 4.6e9, rel=1e-3
    )
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


def test_rate_is_that_of_the_global_batch():
    """5e-4 per 512 images: 1e-3 for DeiT's 1,024, reached after five epochs."""
    rate, _ = create(OptimConfig.from_config(base.get_config()), 1251)
    assert float(rate(0)) == pytest.approx(1e-6)
    assert float(rate(5 * 1251)) == pytest.approx(9.99322e-4, rel=1e-5)


def test_impossible_schedules_are_found_when_it_is_made():
    message = "config.warmup_epochs is 41.0; allowed: 0 to epochs, 40"
    with pytest.raises(InputError, match=message):
        create(OptimConfig.from_config(config(warmup_epochs=41.0)), 11)


def test_first_step_of_the_optimizer():
    """AdamW's first step is the rate, against the sign; then decay of 2-D weights."""
    made = config(weight_decay=0.5, eps=0.0, clip_grad_norm=0.0)
    optimizer = adamw(OptimConfig.from_config(made), lambda step: 0.1)
    params = {"kernel": np.full((1, 2), 2.0, np.float32), "bias": np.ones(2, "f")}
    grads = {"kernel": np.array([[3.0, -4.0]], "f"), "bias": np.array([1.0, -1], "f")}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [[-0.2, 0.0]], atol=1e-6)
    np.testing.assert_allclose(updates["bias"], [-0.1, 0.1], atol=1e-6)


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


def test_names_of_fresh_parts():
    made = config(**{"init.fresh": ("head",)})
    assert RunConfig.from_config(made).init.fresh == ("head",)
    made = base.get_config().to_dict()
    made["init"]["fresh"] = "head"
    with pytest.raises(InputError, match="config.init.fresh is .* allowed: name"):
        RunConfig.from_config(made)


@pytest.mark.parametrize("labels, is_noted", [((1, 2), True), ((1, 0), False)])
def test_labels_that_may_count_from_one_are_noted(tmp_path, labels, is_noted):
    rows = ["filename,label"]
    for label in labels:
        Image.new("RGB", (16, 16)).save(tmp_path / f"{label}.png")
        rows.append(f"{label}.png,{label}")
    (tmp_path / "set.csv").write_text("\n".join(rows))
    config = quickstart.get_config()
    config.data.name = data = f"csv:{tmp_path}/set.csv"
    weights = types.SimpleNamespace(
        path="w.npz", class_names=None, names_of_data=None, run=None
    )
    source, notes = RunConfig.from_config(config).test_images(weights, limit=1)
    note = f"note: no label of {data} is 0, the lowest is 1; labels count from 0"
    taken = "note: 1 of 2 images are taken, evenly spaced"
    assert len(source) == 1 and notes == [taken, *[note] * is_noted]
