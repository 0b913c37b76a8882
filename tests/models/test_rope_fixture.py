"""Small DINOv3 and EVA02 models against what timm computes (tools/fixtures.py)."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from imagepiece_jax.models import resize_positions, timm_tensors
from imagepiece_jax.models.spec import create_model
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.weights import layouts
from tests.models import tiny

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "rope.npz"
SIZE = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4, "num_classes": 5}
IMAGE = (20, 28)
DINOV3 = "vit_small_plus_patch16_dinov3_qkvb"
EVA02 = "eva02_base_patch16_clip_224"
# Of the largest value; a fault has to show ten times that.
ALLOWED = 1e-4


@pytest.fixture(scope="module")
def fixture():
    with np.load(FIXTURE) as arrays:
        return dict(arrays)


def tensors_of(name, fixture):
    mark = f"{name}/tensors/"
    return {k.removeprefix(mark): v for k, v in fixture.items() if mark in k}


def made(name, fixture):
    """(model, variables, image) of the fixture."""
    tensors = tensors_of(name, fixture)
    ratio = tensors["blocks.0.mlp.fc2.weight"].shape[1] / SIZE["embed_dim"]
    model = create_model(name, image_size=IMAGE, mlp_ratio=ratio, **SIZE)
    tensors = resize_positions.fit(layouts.to_timm(tensors).tensors, model, IMAGE)
    variables = timm_tensors.from_timm(tensors, variable_shapes(model, IMAGE))
    return model, variables, fixture[f"{name}/image"].astype(np.float32)


def differences(name, fixture, model, variables, image):
    """Of logits and of features, in units of the largest value."""
    outputs = tiny.jit(model.apply)(variables, image)
    for field, got in (("logits", outputs.logits), ("features", outputs.tokens)):
        want = fixture[f"{name}/{field}"]
        assert got.shape == want.shape
        yield np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", [DINOV3, EVA02])
def test_logits_and_features_are_timms(fixture, name):
    with jax.default_matmul_precision("highest"):
        found = [*differences(name, fixture, *made(name, fixture))]
    assert max(found) < ALLOWED / 10


@pytest.mark.parametrize(
    "name, fault",
    [
        (DINOV3, {"norm_eps": 1e-6}),
        (DINOV3, {"rotary": None}),
        (DINOV3, {"rotary": {"planes": "neighbors"}}),
        (DINOV3, {"rotary": {"axes": "xy"}}),
        (DINOV3, {"rotary": {"temperature": 80.0}}),
        (EVA02, {"norm_eps": 1e-5}),
        (EVA02, {"rotary": {"planes": "halves"}}),
        (EVA02, {"rotary": {"reference": (16, 15)}}),
        (EVA02, {"rotary": {"start": 0.5}}),
    ],
)
def test_other_parts_show(fixture, name, fault):
    model, variables, image = made(name, fixture)
    if fault.get("rotary"):
        fault = {"rotary": dataclasses.replace(model.arch.rotary, **fault["rotary"])}
    wrong = model.clone(arch=dataclasses.replace(model.arch, **fault))
    found = [*differences(name, fixture, wrong, variables, image)]
    assert min(found) > 10 * ALLOWED


def test_other_variables_show(fixture):
    """LayerScale left out, and the class token in the place of a register."""
    model, variables, image = made(DINOV3, fixture)
    plain = {**variables["params"]}
    for block in ("blocks_0", "blocks_1"):
        one = {"gamma": np.ones(SIZE["embed_dim"], np.float32)}
        plain[block] = plain[block] | {"ls1": one, "ls2": one}
    found = [*differences(DINOV3, fixture, model, {"params": plain}, image)]
    assert min(found) > 10 * ALLOWED
    first = variables["params"]["cls_token"]
    rest = variables["params"]["reg_token"]
    registers = np.concatenate([first, rest[:, 1:]], axis=1)
    swapped = {"cls_token": rest[:, :1], "reg_token": registers}
    wrong = {"params": variables["params"] | swapped}
    # Patches see both alike: the tokens themselves differ.
    _, found = differences(DINOV3, fixture, model, wrong, image)
    assert found > 10 * ALLOWED


def test_names_go_back_to_timm(fixture):
    """Bit for bit, the projections apart and the norms in their places."""
    for name in (DINOV3, EVA02):
        model, variables, _ = made(name, fixture)
        back = layouts.as_timm(timm_tensors.to_timm(variables), model.arch)
        want = tensors_of(name, fixture)
        assert back.keys() == want.keys()
        for key, tensor in want.items():
            np.testing.assert_array_equal(back[key], tensor.astype(np.float32))
