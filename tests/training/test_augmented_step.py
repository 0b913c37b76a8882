"""Augmentation inside the step: draws by position, and the fields of the config."""

import dataclasses
import functools
import types

import jax
import numpy as np

from configs import base
from imagepiece_jax.common import parallel
from imagepiece_jax.data.augment.policy import Augment, Crop, Policy
from imagepiece_jax.training import train_step
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.train_step import Recipe
from tests.training.test_train_step import PLAIN

SIDE, CANVAS, BATCH = 8, 12, 8
IMAGENET = (124, 116, 104)  # its mean as a pixel
POLICY = Policy(1, 1.0, magnitude=9.0, magnitude_std=0.5, fill=IMAGENET)
WHOLE = Augment(Crop(SIDE, (0.08, 1.0), True), POLICY, erase_prob=0.5)


def batch():
    draw = np.random.default_rng(0)
    return {
        "image": draw.integers(0, 256, (BATCH, CANVAS, CANVAS, 3), np.uint8),
        "extent": draw.integers(SIDE, CANVAS + 1, (BATCH, 2), np.int32),
        "label": draw.integers(0, 10, BATCH, np.int32),
    }


@functools.cache
def program():
    recipe = dataclasses.replace(PLAIN, seed=3, augment=WHOLE)
    model = types.SimpleNamespace(mean=(0.5,) * 3, std=(0.5,) * 3)
    prepare = functools.partial(train_step._prepare, model=model, recipe=recipe)
    return parallel.pmap(prepare)


def prepared(part, positions, step=5, index=0):
    """Images after `_prepare` on one device, mixup and cutmix switched off."""
    positions = np.asarray(positions, np.int32)
    inputs = (part, positions, np.int32(step), np.int32(index))
    image, _ = program()(*jax.tree.map(lambda x: np.asarray(x)[None], inputs))
    return np.asarray(image[0])


def test_draws_belong_to_a_place_in_the_global_batch():
    """Whatever device, micro-batch or neighbor is there; another step, other draws."""
    whole = prepared(batch(), range(BATCH))
    assert whole.shape == (BATCH, SIDE, SIDE, 3) and np.isfinite(whole).all()
    order = np.array([6, 1, 7, 0, 3, 2, 5, 4])
    moved = jax.tree.map(lambda x: x[order], batch())
    np.testing.assert_array_equal(prepared(moved, order, index=1), whole[order])
    same = jax.tree.map(lambda x: np.repeat(x[:1], BATCH, 0), batch())
    copies = prepared(same, range(BATCH))
    assert len({image.tobytes() for image in copies}) == BATCH
    np.testing.assert_array_equal(copies[0], whole[0])
    later = prepared(same, range(BATCH), step=6)
    assert (later != copies).any((1, 2, 3)).all()


def recipe(**fields):
    made = base.get_config()
    made.update_from_flattened_dict(fields)
    run = RunConfig.from_config(made)
    return Recipe.of(run, run.create_model())


def test_what_the_config_leaves_to_the_device():
    """DeiT's rand-m9-mstd0.5-inc1 and erasing with .25, unless it says otherwise."""
    deit = Policy(2, prob=0.5, magnitude=9.0, magnitude_std=0.5, fill=IMAGENET)
    assert recipe().augment == Augment(None, deit, 0.25)
    other = {"augment.layers": 0, "augment.erase_prob": 0.0, "data.canvas": 384}
    other |= {"data.flip": False, "data.area": (0.3, 0.9)}
    assert recipe(**other).augment == Augment(Crop(224, (0.3, 0.9), False), None, 0.0)
