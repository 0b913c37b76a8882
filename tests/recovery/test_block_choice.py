"""Blocks are chosen by the distance from the dense model, and not by chance."""

import dataclasses

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.models import registry
from imagepiece_jax.models.cost import share_of_dense
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.recovery import block_choice, recovery_images
from tests.helpers import tiny_vit
from tests.helpers.recovery_trials import noise, run_recovery, slow_kl
from tests.helpers.refused_calls import refused


def blocks_of(model):
    return [index for index, layer in enumerate(model.plan) if layer.counts]


def deit_tiny(reduction, depth=12):
    config = dataclasses.replace(registry.model_config("deit_ti"), depth=depth)
    return Pretrained(create_model(config, reduction), {})


def test_equal_sets_are_rarely_exchanged():
    """Twelve sets that differ by chance: at most 5 % of the draws leave the first."""
    rng = np.random.default_rng(0)
    draws = rng.gamma(1, 0.1, (200, 12, 200))
    assert sum(block_choice.pick_nearest(draw) != 0 for draw in draws) <= 10


def test_the_nearest_set_is_picked():
    distances = np.random.default_rng(0).gamma(1, 0.1, (3, 200))
    distances[1:] = distances[0] * [[0.7], [0.6]]
    assert block_choice.pick_nearest(distances) == 2
    assert block_choice.pick_nearest(distances[::-1]) == 0


@pytest.mark.parametrize(("share", "count"), [(0.5, 4), (0.4, 11)])
def test_rivals_cost_no_more_time(share, count):
    """Four sets have three blocks like the default; below .45 all others have fewer."""
    student = deit_tiny(share)
    rivals = block_choice.list_rivals(student)
    assert len(rivals) == count
    for rival in rivals:
        assert len(blocks_of(rival)) <= len(blocks_of(student.model))
        assert abs(share_of_dense(rival) - share_of_dense(student.model)) < 0.01


def test_blocks_follow_the_depth():
    rivals = block_choice.list_rivals(deit_tiny(0.5, depth=24))
    assert [6, 8, 12] in [blocks_of(rival) for rival in rivals]


@pytest.fixture
def deep(monkeypatch):
    monkeypatch.setattr(block_choice, "BLOCK_SETS", ((2, 3), (6, 8)))
    return tiny_vit.pretrained("peaks:macs=0.8:counts=stages-4-5", depth=12)


def test_recover_moves_to_the_nearest_blocks(deep):
    """The distances are KL divergences of the images that train, computed slowly."""
    images = noise(96)
    moved = run_recovery(deep, images, steps=1, choose_blocks=True)
    (variant,) = moved.recovery.variants
    training = recovery_images.split_images(as_source(images), 8).training
    pixels = imagepiece_jax.normalize(
        images[training.indices], deep.config.mean, deep.config.std
    )

    def logits(vit):
        return tiny_vit.logits(vit.model)(vit.variables, pixels).astype(float)

    models = [deep, *map(deep.with_model, block_choice.list_rivals(deep))]
    assert len(models) == 3
    dense = logits(deep.with_reduction(None))
    distances = [slow_kl(dense, logits(vit)) for vit in models]
    picked = models[block_choice.pick_nearest(distances)]
    assert picked is not deep
    assert variant.reduction == moved.reduction == picked.reduction


def test_too_few_images_are_refused(deep):
    with refused("64"):
        run_recovery(deep, noise(48), choose_blocks=True)
