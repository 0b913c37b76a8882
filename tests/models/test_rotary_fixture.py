"""Small DINOv3 and EVA02 models against what timm computes (tools/fixtures.py)."""

import pathlib

import chex
import jax
import numpy as np
import pytest

from imagepiece_jax.models import resize_positions, timm_tensors
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.weights import naming
from tests.helpers import named_models, tiny_vit

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "rope.npz"
SIZE = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4, "num_classes": 5}
IMAGE = (20, 28)
DINOV3 = "vit_small_plus_patch16_dinov3_qkvb"
EVA02 = "eva02_base_patch16_clip_224"
ALLOWED = 1e-5  # of the largest value; random weights, so that faults show far above


@pytest.fixture(scope="module")
def fixture():
    with np.load(FIXTURE) as arrays:
        return dict(arrays)


def tensors_of(name, fixture):
    mark = f"{name}/tensors/"
    return {k.removeprefix(mark): v for k, v in fixture.items() if mark in k}


def made(name, fixture):
    tensors = tensors_of(name, fixture)
    ratio = tensors["blocks.0.mlp.fc2.weight"].shape[1] / SIZE["embed_dim"]
    model = create_model(
        named_models.config(name, image_size=IMAGE, mlp_ratio=ratio, **SIZE)
    )
    tensors = naming.with_timm_names(tensors)
    tensors = resize_positions.fit_positions(tensors, model.config, IMAGE)
    variables = timm_tensors.from_timm(tensors, variable_shapes(model))
    return model, variables, fixture[f"{name}/image"].astype(np.float32)


def differences(name, fixture, model, variables, image):
    """Of logits and of features, in units of the largest value."""
    outputs = tiny_vit.jit(model.apply)(variables, image)
    for field, got in (("logits", outputs.logits), ("features", outputs.tokens)):
        want = fixture[f"{name}/{field}"]
        assert got.shape == want.shape
        yield np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", [DINOV3, EVA02])
def test_logits_and_features_are_timms(fixture, name):
    with jax.default_matmul_precision("highest"):
        found = [*differences(name, fixture, *made(name, fixture))]
    assert max(found) < ALLOWED


def test_names_go_back_to_timm(fixture):
    for name in (DINOV3, EVA02):
        model, variables, _ = made(name, fixture)
        back = naming.pack_for_timm(
            timm_tensors.to_timm(variables), model.config.arch, name.partition(".")[0]
        )
        want = tensors_of(name, fixture)
        want = {key: tensor.astype(np.float32) for key, tensor in want.items()}
        chex.assert_trees_all_equal(back, want)
