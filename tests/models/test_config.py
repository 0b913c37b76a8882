import dataclasses
import json

import numpy as np
import pytest

from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import PROBLEM_TYPES, REGRESSION, Head
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.rotary import Rotary
from tests.helpers import named_models, tiny_vit
from tests.helpers.refused_calls import refused

WRONG = [  # (fields, part of the error)
    ({"embed_dim": 2.5}, "embed_dim is 2.5"),
    ({"num_heads": 4}, "num_heads must divide embed_dim, 30"),
    ({"mlp_ratio": 1e-9}, "mlp_ratio makes an MLP of width 0"),
    ({"depth": 10**30}, "depth is 1000"),
    ({"arch": {"pool": "map", "pool_heads": 4}}, "pool_heads must divide 30"),
    ({"std": (0.5, 0.5, 128)}, "std is 128"),
    ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
    ({"prop_attn": 1}, "prop_attn is 1"),
    ({"dtype": "float8"}, "dtype is 'float8'"),
    ({"attention": "flash"}, "attention is 'flash'"),
    ({"stem": "conv", "patch_size": 14}, "patch_size is 14; stem 'conv' needs"),
    ({"stem": "conv", "arch": {"patch_bias": False}}, "needs patch_bias"),
    ({"arch": {"registers": (2,)}}, "registers is (2,)"),
    ({"arch": {"pre_norm": 1}}, "pre_norm is 1"),
    ({"class_token": False, "pool": "token"}, "needs class_token"),
    ({"arch": {"dist_token": True, "pool": "mean"}}, "dist_token needs pool 'token'"),
    ({"arch": {"rotary": {"origin": "centre"}}}, "origin is 'centre'"),
    ({"arch": {"rotary": {}}}, "head_dim"),  # 10 channels have no whole planes
]


@pytest.mark.parametrize("fields, message", WRONG)
def test_a_wrong_field_is_named_with_its_value(fields, message):
    with refused(message):
        tiny_vit.model(**fields)


def test_an_architecture_is_read_from_json():
    rotary_arch = Architecture(rotary=Rotary(origin="center", reference=(3, 4)))
    fields = json.loads(json.dumps(dataclasses.asdict(rotary_arch)))
    assert Architecture(**fields) == rotary_arch


def test_pixels_beyond_whole_patches_and_registers_count():
    model = tiny_vit.model(image_size=18, arch={"registers": 2})
    assert model.plan[0].attn_tokens == 16 + 3  # two of 18 pixels are cut


MAE = "vit_base_patch16_224.mae"  # as ToMe's authors use it


@pytest.mark.parametrize(
    "name, reduction, given, used",
    [
        ("deit_ti", "tome", {}, True),
        ("deit_ti", "none", {}, False),
        ("deit_ti", "tome", {"prop_attn": False}, False),
        ("deit_ti", "evit", {"prop_attn": True}, True),
        ("deit_ti", "tome:prop_attn=False", {"prop_attn": True}, False),
        (MAE, "tome", {}, False),
        (MAE, "tome", {"prop_attn": True}, True),
        ("vit_base_patch16_224.dino", "tome", {}, True),
    ],
)
def test_when_attention_is_proportional(name, reduction, given, used):
    model = create_model(named_models.config(name, **given), reduction)
    assert model.prop_attn is used


SINGLE, MULTI, _, PROJECTION = PROBLEM_TYPES


@pytest.mark.parametrize(
    "problem_type, logits, expected",
    [
        (MULTI, [2, 0, -2], [0.880797, 0.5, 0.119203]),
        (SINGLE, [[0, 0, np.log(2)]], [[0.25, 0.25, 0.5]]),
        # One class is not always sure, and large logits do not overflow.
        (MULTI, [0], [0.5]),
        (SINGLE, [0], [0.5]),
        (MULTI, [2e4, 0, -2e4], [1, 0.5, 0]),
        (SINGLE, [2e4, 0, -2e4], [1, 0, 0]),
    ],
)
def test_probabilities_by_hand(problem_type, logits, expected):
    logits = np.float32(logits)
    probabilities = Head(logits.shape[-1], problem_type).probabilities(logits)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


@pytest.mark.parametrize("head", [Head(3, REGRESSION), Head(3, PROJECTION), Head(0)])
def test_other_heads_have_no_probabilities(head):
    with refused("problem_type"):
        head.probabilities(np.zeros(7))
    with refused("not finite"):
        Head(7).probabilities(np.full(7, np.nan))
