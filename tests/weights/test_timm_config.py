import dataclasses

import pytest

from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.weights import timm_config
from imagepiece_jax.weights.description import parse_config
from tests.helpers import named_models
from tests.helpers.config_files import (
    CLIP_PIXELS,
    DISTILLED_NAME,
    EVA_NAME,
    GATED_NAME,
    HALF_PIXELS,
    IMAGENET_PIXELS,
    timm_file,
)
from tests.helpers.refused_calls import refused


def test_timms_form_is_parsed():
    """Also the older form, without grouped fields."""
    described = parse_config(timm_file(), {})
    config = described.config
    assert config == registry.model_config("vit_small_patch14_reg4_dinov2.lvd142m")
    assert (config.image_size, config.num_classes) == (518, 0)
    assert {"mean": config.mean, "std": config.std} == IMAGENET_PIXELS
    assert config.preprocessing == Preprocessing(518, crop=1.0)
    assert described.class_names is None
    config = timm_file()
    assert parse_config(config.pop("pretrained_cfg") | config, {}) == described


USUAL = {"in_chans": 3, "num_classes": 512, "global_pool": "token"}
TUNED = {
    "tag": "openai",
    "input_size": [3, 224, 224],
    **CLIP_PIXELS,
    "num_classes": 512,
}


@pytest.mark.parametrize(
    "changes, arguments, tag",
    [
        ({}, {}, ".openai"),
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
    name = "vit_base_patch16_clip_224"
    config = timm_file(architecture=name, model_args=arguments)
    del config["num_classes"]
    config["pretrained_cfg"] |= TUNED | changes
    parsed = parse_config(config, {}).config
    assert parsed.name == name + tag
    assert parsed.arch.gelu == ("quick" if tag else "exact")
    assert (parsed.problem_type == "projection") == bool(tag)
    config["model_args"] = {**arguments, "act_layer": "gelu_tanh"}
    assert parse_config(config, {}).config.arch.gelu == "tanh"


@pytest.mark.parametrize(
    "fields, names",
    [
        ({"label_names": ["a", "b", "c"]}, ("a", "b", "c")),
        ({"label_names": {"0": "a", "2": "c"}}, ("a", None, "c")),
        (
            {"label_names": ["n1", "n2", "n3"], "label_descriptions": {"n2": "cat"}},
            ("n1", "cat", "n3"),
        ),
    ],
)
def test_timms_labels_are_parsed(fields, names):
    assert parse_config(timm_file(num_classes=3, **fields), {}).class_names == names


@pytest.mark.parametrize("name", registry.public_models())
def test_default_arguments_change_no_part(name):
    images = {"preprocessing": Preprocessing(224)} | HALF_PIXELS
    config = registry.build_config(name, num_classes=0, **images)
    assert timm_config.apply_model_args(config, {}) == config


def test_names_before_timm_0_9_are_known():
    images = {"input_size": [3, 224, 224], **HALF_PIXELS}
    old = {"architecture": "vit_small_patch16_224_dino", "num_classes": 0} | images
    parsed = parse_config(old, {}).config
    assert parsed.name.startswith("vit_small_patch16_224")
    tuned = old | {"architecture": "vit_base_patch16_224_in21k", "num_classes": 3}
    parsed = parse_config(tuned, {}).config
    assert (parsed.name, parsed.num_classes) == ("vit_base_patch16_224", 3)
    with refused("vit_base_patch16_of_nobody"):
        parse_config(tuned | {"architecture": "vit_base_patch16_of_nobody"}, {})


@pytest.mark.parametrize(
    "arguments, expected_fields",
    [
        ({"img_size": 224}, {"image_size": 224}),
        ({"act_layer": "gelu_tanh", "drop_path_rate": 0.1}, {"gelu": "tanh"}),
        ({"mlp_ratio": 2.0, "embed_dim": 36}, {"mlp_ratio": 2.0, "embed_dim": 36}),
        ({"mlp_ratio": 0.3}, {"mlp_ratio": 115 / 384}),  # timm cuts to whole numbers
    ],
)
def test_arguments_that_keep_the_architecture(arguments, expected_fields):
    parsed = parse_config(timm_file(model_args=arguments), {}).config
    defaults = {"num_classes": 0, "image_size": 518, "crop": 1.0}
    # Positions are resized by timm's code, not like the published weights'.
    arch = Architecture(registers=4, prefix_positions=False, layer_scale=True)
    fields = {"patch_size": 14, "embed_dim": 384, "depth": 12, "num_heads": 6}
    fields |= {"arch": arch} | IMAGENET_PIXELS | defaults
    assert parsed == dataclasses.replace(
        named_models.config(None, **fields | expected_fields), name=REG4
    )


DEIT = "deit_tiny_patch16_224"
GAP = {"global_pool": "avg"}
TOKENS = {"reg_tokens": 2, "no_embed_class": True, "init_values": 1e-5}
REGISTERS = {"registers": 2, "prefix_positions": False}
MAP = {"global_pool": "map"}
PREFIX = {"pool_include_prefix": True}
REG4 = "vit_small_patch14_reg4_dinov2"


# (architecture, arguments, fields of Architecture that they change)
@pytest.mark.parametrize(
    "name, arguments, changes",
    [
        (DEIT, {"embed_dim": 36, "init_values": None}, {}),
        (DEIT, TOKENS, REGISTERS | {"layer_scale": True}),
        (DEIT, GAP, {"pool": "mean", "final_norm": False, "fc_norm": True}),
        (DEIT, GAP | {"fc_norm": False}, {"pool": "mean"}),
        (DEIT, MAP | {"class_token": False}, {"class_token": False, "pool": "map"}),
        (DEIT, MAP | PREFIX, {"pool": "map"} | PREFIX),
        ("test_vit3", {"pool_include_prefix": False}, {"pool_include_prefix": False}),
        # This class's map always reads the prefix.
        (EVA_NAME, MAP, {"pool": "map", "final_norm": True, "fc_norm": False} | PREFIX),
        (DEIT, {"final_norm": False}, {"final_norm": False}),
        *((REG4, {"init_values": v}, {"layer_scale": bool(v)}) for v in (None, 0, 0.1)),
        (
            DEIT,
            {"pre_norm": True, "qkv_bias": False},
            {"pre_norm": True, "patch_bias": False, "qkv_bias": False},
        ),
        # timm ignores a gate's other activation and a distilled head's norm.
        *(
            (GATED_NAME, {"act_layer": x}, {"resize": "antialias"})
            for x in ("silu", "swish")
        ),
        (DISTILLED_NAME, {"fc_norm": False}, {}),
        # By its name, no norm follows the mean.
        ("vit_base_patch16_gap_224", {"final_norm": False}, {"final_norm": False}),
    ],
)
def test_arguments_that_change_the_architecture(name, arguments, changes):
    config = timm_file(architecture=name, model_args=arguments, num_classes=0)
    parsed = parse_config(config, {}).config
    public = registry.model_config(name)
    assert parsed.arch == dataclasses.replace(public.arch, **changes)
    for field in ("name", "num_heads", "patch_size", "embed_dim", "depth"):
        assert getattr(parsed, field) == arguments.get(field, getattr(public, field))
