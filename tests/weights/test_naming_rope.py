"""Checkpoints of rotary models under other names than timm's.

tests/fixtures/rope.npz has the tensors, and tests/models/test_rotary_fixture.py timm's
outputs for them. The other names here are from the original code.
"""

import functools
import re

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.weights import naming
from tests.helpers import named_models
from tests.helpers.pth_files import assert_same
from tests.helpers.refused_calls import refused
from tests.models.test_rotary_fixture import DINOV3, EVA02, FIXTURE, SIZE, stored

WIDTH = 24
# (a pattern of timm's names, its replacement), in this order.
GATE = [(r"fc1_g", "w1"), (r"fc1_x", "w2"), (r"fc2", "w3")]
OWN = [("reg_token", "storage_tokens"), (r"gamma_(\d)", r"ls\1.gamma")]
TRANSFORMERS = [
    (r"^cls_token", "embeddings.cls_token"),
    (r"^reg_token", "embeddings.register_tokens"),
    (r"^patch_embed\.proj", "embeddings.patch_embeddings"),
    (r"gamma_(\d)", r"layer_scale\1.lambda1"),
    (r"attn\.proj", "attention.o_proj"),
    *((r"fc1_g", "gate_proj"), (r"fc1_x", "up_proj"), (r"fc2", "down_proj")),
    (r"^blocks", "layer"),
]
EVA = [
    *((r"attn\.norm", "attn.inner_attn_ln"), (r"mlp\.norm", "mlp.ffn_ln")),
    (r"([qv])_proj\.bias", r"\1_bias"),
    *GATE,
]


@functools.cache
def timm_tensors(name):
    """A model's tensors by timm's names, without a head."""
    with np.load(FIXTURE) as arrays:
        tensors = stored(name, arrays).items()
        return {k: v.astype(np.float32) for k, v in tensors if "head." not in k}


def renamed(tensors, table):
    out = {}
    for name, tensor in tensors.items():
        for old, new in table:
            name = re.sub(old, new, name)
        out[name] = tensor
    return out


def dinov3_file(keys=7.0, mask=(1, 0, 1), tensors=None):
    """DINOv3's own file: a mask hides the keys' bias."""
    tensors = tensors or timm_tensors(DINOV3)
    out = {"mask_token": np.zeros((1, WIDTH)), "rope_embed.periods": np.ones(3)}
    out |= {"local_cls_norm.weight": np.ones(WIDTH)}
    for name, tensor in renamed(tensors, OWN + GATE).items():
        attention, _, leaf = name.rpartition(".")
        if leaf == "q_bias":
            value = tensors[f"{attention}.v_bias"]
            bias = [tensor, np.full(WIDTH, keys, np.float32), value]
            out[f"{attention}.qkv.bias"] = np.concatenate(bias)
            if mask:
                out[f"{attention}.qkv.bias_mask"] = np.repeat(np.float32(mask), WIDTH)
        elif leaf != "v_bias":
            out[name] = tensor
    return out


def transformers_file(keys=None, inside=""):
    """transformers' file, with blocks named `inside`..."""
    out = {"embeddings.mask_token": np.zeros((1, 1, WIDTH), np.float32)}
    for name, tensor in renamed(timm_tensors(DINOV3), TRANSFORMERS).items():
        name = inside * name.startswith("layer.") + name
        module, _, leaf = name.partition(".attn.")
        if leaf == "qkv.weight":
            for letter, third in zip("qkv", np.split(tensor, 3), strict=True):
                out[f"{module}.attention.{letter}_proj.weight"] = third
        elif leaf:
            out[f"{module}.attention.{leaf[0]}_proj.bias"] = tensor
            if keys is not None:
                bias = np.full(WIDTH, keys, np.float32)
                out[f"{module}.attention.k_proj.bias"] = bias
        else:
            out[name] = tensor
    return out


def eva_file(tensors=None):
    angles = {f"{at}rope.freqs_cos": np.ones(4) for at in ("", "blocks.0.attn.")}
    return renamed(tensors or timm_tensors(EVA02), EVA) | angles


@pytest.mark.parametrize("wrapper", ["", "vision_model.", "_orig_mod.a."])
@pytest.mark.parametrize(
    "name, make_file, options",
    [
        (DINOV3, dinov3_file, {}),
        (DINOV3, dinov3_file, {"keys": 0.0, "mask": None}),
        (DINOV3, dinov3_file, {"keys": np.nan}),  # under its mask
        (DINOV3, transformers_file, {}),
        (DINOV3, transformers_file, {"inside": "model."}),  # in memory
        (EVA02, eva_file, {}),
    ],
)
def test_a_files_tensors_are_read_like_timms(name, make_file, options, wrapper):
    tensors = {wrapper + key: tensor for key, tensor in make_file(**options).items()}
    expected = naming.read_timm_tensors(timm_tensors(name))
    assert_same(naming.read_timm_tensors(tensors), expected)


def test_no_gate_and_no_registers_leave_no_tensors():
    tensors = transformers_file()
    tensors["embeddings.register_tokens"] = np.zeros((1, 0, WIDTH), np.float32)
    plain = {k: v for k, v in tensors.items() if "gate_proj" not in k}
    renamed = naming.read_timm_tensors(plain)
    up = tensors["layer.1.mlp.up_proj.weight"]
    np.testing.assert_array_equal(renamed["blocks.1.mlp.fc1.weight"], up)
    assert "reg_token" not in renamed and "cls_token" in renamed


def test_an_unmasked_key_bias_stays():
    tensors = dinov3_file(mask=None)
    renamed = naming.read_timm_tensors(tensors)
    for file in (transformers_file(keys=7.0), dinov3_file(mask=(1, 1, 1))):
        assert_same(naming.read_timm_tensors(file), renamed)
    thirds = np.split(renamed["blocks.1.attn.qkv.bias"], 3)
    assert set(thirds[1]) == {7.0}
    assert 7.0 not in {*thirds[0], *thirds[2]}
    ratio = renamed["blocks.0.mlp.fc2.weight"].shape[1] / WIDTH
    config = named_models.config(DINOV3, mlp_ratio=ratio, **SIZE | {"num_classes": 0})
    with refused("qkv.bias of shape (72,) is left over"):
        imagepiece_jax.load(tensors, config=config)
    config = config.with_arch(key_bias=True)
    assert imagepiece_jax.load(tensors, config=config).config == config


def test_a_key_bias_in_one_block_stays_in_all():
    tensors = dinov3_file(mask=None)
    tensors["blocks.0.attn.qkv.bias"][WIDTH : 2 * WIDTH] = 0
    renamed = naming.read_timm_tensors(tensors)
    for bias in ("blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias"):
        np.testing.assert_array_equal(renamed[bias], tensors[bias])
