import dataclasses

import pytest

from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.models import registry
from imagepiece_jax.weights import timm_config
from imagepiece_jax.weights.description import parse_config
from tests.helpers import config_files
from tests.helpers.config_files import HALF_PIXELS, timm_file


def test_timms_form_is_parsed():
    described = parse_config(timm_file(), {})
    assert described.config == registry.model_config(f"{REG4}.lvd142m")
    assert described.class_names is None


CLIP = "vit_base_patch16_clip_224"
USUAL = {"in_chans": 3, "num_classes": 512, "global_pool": "token"}
TUNED = {"tag": "openai", "input_size": [3, 224, 224], "num_classes": 512}
TUNED |= config_files.CLIP_PIXELS


@pytest.mark.parametrize(
    "changes, arguments, tag",
    [
        ({}, USUAL | {"img_size": [224, 224]}, ".openai"),  # timm writes this
        ({}, {"img_size": 224}, ".openai"),
        ({"num_classes": 10}, {}, ""),
        ({"mean": [0.5, 0.5, 0.5]}, {}, ""),
        ({}, {"depth": 12}, ""),
        ({}, {"global_pool": "avg"}, ""),
        ({}, {"img_size": [240, 240]}, ""),
    ],
)
def test_a_changed_models_tag_is_ignored(changes, arguments, tag):
    """timm's push_to_hf_hub keeps the tag, but timm trains with exact GELU."""
    file = timm_file(architecture=CLIP, model_args=arguments)
    del file["num_classes"]
    file["pretrained_cfg"] |= TUNED | changes
    config = parse_config(file, {}).config
    assert config.name == CLIP + tag
    assert config.arch.gelu == ("quick" if tag else "exact")
    assert (config.problem_type == "projection") == bool(tag)
    file["model_args"] = {**arguments, "act_layer": "gelu_tanh"}
    assert parse_config(file, {}).config.arch.gelu == "tanh"


def test_timms_labels_are_parsed():
    numbered = timm_file(num_classes=3, label_names={"0": "a", "2": "c"})
    assert parse_config(numbered, {}).class_names == ("a", None, "c")
    described = {"label_names": ["n1", "n2"], "label_descriptions": {"n2": "cat"}}
    file = timm_file(num_classes=2, **described)
    assert parse_config(file, {}).class_names == ("n1", "cat")


@pytest.mark.parametrize("name", registry.public_models())
def test_default_arguments_change_no_part(name):
    images = {"preprocessing": Preprocessing(224)} | HALF_PIXELS
    config = registry.build_config(name, num_classes=0, **images)
    assert timm_config.apply_model_args(config, {}) == config


def test_names_before_timm_0_9_are_known():
    file = {"num_classes": 3, "input_size": [3, 224, 224], **HALF_PIXELS}
    file["architecture"] = "vit_small_patch16_224_dino"
    config = parse_config(file, {}).config
    assert (config.name, config.num_classes) == ("vit_small_patch16_224", 3)


DEIT = "deit_tiny_patch16_224"
GAP = {"global_pool": "avg"}
TOKENS = {"reg_tokens": 2, "no_embed_class": True, "init_values": 1e-5}
REGISTERS = {"registers": 2, "prefix_positions": False}
MAP = {"global_pool": "map"}
PREFIX = {"pool_include_prefix": True}
REG4 = "vit_small_patch14_reg4_dinov2"
PRE_NORM = {"pre_norm": True, "qkv_bias": False}
# This class's map always reads the prefix.
EVA_MAP = {"pool": "map", "final_norm": True, "fc_norm": False} | PREFIX


# (architecture, arguments, fields of Architecture that they change)
@pytest.mark.parametrize(
    "name, arguments, changes",
    [
        (DEIT, {"embed_dim": 36, "init_values": None, "drop_path_rate": 0.1}, {}),
        (DEIT, {"mlp_ratio": 0.3}, {}),
        (DEIT, {"act_layer": "gelu_tanh"}, {"gelu": "tanh"}),
        (DEIT, TOKENS, REGISTERS | {"layer_scale": True}),
        (DEIT, GAP, {"pool": "mean", "final_norm": False, "fc_norm": True}),
        (DEIT, GAP | {"fc_norm": False}, {"pool": "mean"}),
        (DEIT, MAP | {"class_token": False}, {"class_token": False, "pool": "map"}),
        (DEIT, MAP | PREFIX, {"pool": "map"} | PREFIX),
        ("test_vit3", {"pool_include_prefix": False}, {"pool_include_prefix": False}),
        (config_files.EVA_NAME, MAP, EVA_MAP),
        (DEIT, {"final_norm": False}, {"final_norm": False}),
        # Positions are resized by timm's code, not like the published weights'.
        (REG4, {"init_values": 0}, {"layer_scale": False}),
        (DEIT, PRE_NORM, PRE_NORM | {"patch_bias": False}),
        # timm ignores a gate's other activation and a distilled head's norm.
        (config_files.GATED_NAME, {"act_layer": "swish"}, {"resize": "antialias"}),
        (config_files.DISTILLED_NAME, {"fc_norm": False}, {}),
        # By its name, no norm follows the mean.
        ("vit_base_patch16_gap_224", {"final_norm": False}, {"final_norm": False}),
    ],
)
def test_arguments_change_the_architecture(name, arguments, changes):
    file = timm_file(architecture=name, model_args=arguments, num_classes=0)
    config = parse_config(file, {}).config
    public = registry.model_config(name)
    assert config.arch == dataclasses.replace(public.arch, **changes)
    for field in ("name", "num_heads", "patch_size", "embed_dim", "depth"):
        assert getattr(config, field) == arguments.get(field, getattr(public, field))
    hidden_width = int(config.embed_dim * arguments.get("mlp_ratio", public.mlp_ratio))
    if config.arch.mlp == "gelu":  # timm cuts to whole numbers
        assert config.mlp_ratio == hidden_width / config.embed_dim
