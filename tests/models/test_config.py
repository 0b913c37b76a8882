import dataclasses
import json

import pytest

from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.rotary import Rotary
from tests.helpers import named_models, tiny_vit
from tests.helpers.refused_calls import refused

UNWEIGHTED = "tome:prop_attn=False"
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


def test_a_model_without_a_name_has_its_fields():
    size = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    arch = {"gelu": "quick", "norm_eps": 1e-5, "registers": 2}
    model = create_model(named_models.config(None, image_size=18, arch=arch, **size))
    assert model.config.arch == Architecture(gelu="quick", norm_eps=1e-5, registers=2)
    assert model.plan[0].attn_tokens == 16 + 3  # two of 18 pixels are cut
    rotary_arch = Architecture(rotary=Rotary(origin="center", reference=(3, 4)))
    fields = json.loads(json.dumps(dataclasses.asdict(rotary_arch)))
    assert named_models.config(None, arch=fields, **size).arch == rotary_arch


MAE = "vit_base_patch16_224.mae"


@pytest.mark.parametrize(
    "name, reduction, given, used",
    [
        ("deit_ti", "tome", None, True),
        ("deit_ti", "none", None, False),
        ("deit_ti", "tome", False, False),
        ("deit_ti", "evit", True, True),
        ("deit_ti", UNWEIGHTED, None, False),
        ("deit_ti", UNWEIGHTED, True, False),
        # MAE as ToMe's authors use it; not other weights of its shape.
        (MAE, "tome", None, False),
        (MAE, "tome", True, True),
        ("deit_base_patch16_224", "tome", None, True),
        ("vit_base_patch16_224.dino", "tome", None, True),
    ],
)
def test_when_attention_is_proportional(name, reduction, given, used):
    options = {} if given is None else {"prop_attn": given}
    model = create_model(named_models.config(name, **options), reduction)
    assert model.prop_attn is used
