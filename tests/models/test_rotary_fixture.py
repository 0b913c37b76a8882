"""Small DINOv3 and EVA02 models against timm's outputs (tools/fixtures.py)."""

import pathlib

import chex
import numpy as np
import pytest

from imagepiece_jax.models import timm_tensors
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.weights import naming
from tests.helpers import named_models, parity_record

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "rope.npz"
SIZE = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4, "num_classes": 5}
IMAGE = (20, 28)
DINOV3 = "vit_small_plus_patch16_dinov3_qkvb"
EVA02 = "eva02_base_patch16_clip_224"
ALLOWED = 1e-5  # of the largest value; with random weights faults are far larger


@pytest.fixture(scope="module")
def fixture():
    with np.load(FIXTURE) as arrays:
        return dict(arrays)


def stored(name, fixture):
    mark = f"{name}/tensors/"
    return {k.removeprefix(mark): v for k, v in fixture.items() if mark in k}


def fixture_model(name, fixture):
    """A model, and its tensors as the package names them."""
    tensors = stored(name, fixture)
    ratio = tensors["blocks.0.mlp.fc2.weight"].shape[1] / SIZE["embed_dim"]
    config = named_models.config(name, image_size=IMAGE, mlp_ratio=ratio, **SIZE)
    return create_model(config), naming.read_timm_tensors(tensors)


@pytest.mark.parametrize("name", [DINOV3, EVA02])
def test_outputs_equal_timms_and_tensors_convert_back(fixture, name):
    model, tensors = fixture_model(name, fixture)
    image = fixture[f"{name}/image"].astype(np.float32)
    out = parity_record.run_tensors(model, tensors, image)
    for field, ours in (("logits", out.logits), ("features", out.tokens)):
        assert parity_record.distance(ours, fixture[f"{name}/{field}"]) < ALLOWED
    variables = timm_tensors.from_timm(tensors, variable_shapes(model))
    converted = timm_tensors.to_timm(variables)
    converted = naming.pack_for_timm(converted, model.config.arch, name)
    expected = {k: v.astype(np.float32) for k, v in stored(name, fixture).items()}
    chex.assert_trees_all_equal(converted, expected)
