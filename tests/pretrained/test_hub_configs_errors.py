"""Config files that say what no model here has: one sentence, which names the field."""

import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.pretrained import hub_configs
from tests.pretrained.test_hub_configs import timm

VIT, CENTER = {"model_type": "vit"}, {"size": {"shortest_edge": 256}}
DINOV3, SILU = {"model_type": "dinov3_vit"}, {"hidden_act": "silu"}
ROTARY = "vit_small_patch16_dinov3"
GATED, TOKENS = "vit_giant_patch14_dinov2", {"reg_tokens": 1}
TWO, NORM = "deit_tiny_distilled_patch16_224", {"fc_norm": True}
EVA, GELU = "eva02_tiny_patch14_224", {"act_layer": "gelu"}
OTHER_TYPE = "has a field of another type"


def with_arguments(**arguments):
    return timm(model_args=arguments)


@pytest.mark.parametrize(
    "config, processor, field, value",
    [
        ({"model_type": "resnet"}, {}, "model_type", "resnet"),
        ({"model_type": "bert"}, {}, "model_type", "bert"),
        ({"model_type": "siglip2"}, {}, "model_type", "siglip2"),
        ({"model_type": ["vit"]}, {}, "model_type", ["vit"]),
        (VIT | {"hidden_act": "relu"}, {}, "hidden_act", "relu"),
        (DINOV3 | {"use_gated_mlp": True}, {}, "hidden_act", "gelu"),
        (DINOV3 | SILU, {}, "hidden_act", "silu"),
        (VIT | {"hidden_size": "768"}, {}, "hidden_size", "768"),
        (VIT | {"num_attention_heads": [12]}, {}, "num_attention_heads", [12]),
        (VIT | {"num_channels": 4}, {}, "num_channels", 4),
        (VIT | {"image_size": [224, 256]}, {}, "a size", (224, 256)),
        (VIT, {"size": 224, "resample": 0}, "resample", 0),
        (VIT, {"rescale_factor": 1 / 127.5}, "rescale_factor", 1 / 127.5),
        (VIT, {"do_rescale": False}, "do_rescale", False),
        (VIT, {"do_pad": True}, "do_pad", True),
        (VIT, CENTER, "size", CENTER["size"]),
        (VIT, {"size": 224, "do_center_crop": True}, "size", 224),
        (VIT, CENTER | {"crop_size": 384}, "size", CENTER["size"]),
        (with_arguments(img_size="a"), {}, "the size of images", "a"),
        (timm(architecture="resnet50"), {}, "architecture", "resnet50"),
        (with_arguments(qk_norm=True), {}, "model_args.qk_norm", True),
        (with_arguments(act_layer="relu"), {}, "model_args.act_layer", "relu"),
        (with_arguments(in_chans=1), {}, "model_args.in_chans", 1),
        (timm(architecture=ROTARY, model_args=TOKENS), {}, "model_args", TOKENS),
        (with_arguments(global_pool="max"), {}, "model_args.global_pool", "max"),
        (timm(architecture=GATED, model_args=GELU), {}, "model_args.act_layer", "gelu"),
        (timm(architecture=EVA, model_args=GELU), {}, "model_args.act_layer", "gelu"),
        (timm(architecture=TWO, model_args=NORM), {}, "model_args.fc_norm", True),
    ],
)
def test_what_no_model_here_has(config, processor, field, value):
    with pytest.raises(InputError) as error:
        hub_configs.parse(config, processor)
    assert (error.value.field, error.value.value) == (field, value)
    file = "config.json" if not processor else "preprocessor_config.json"
    assert error.value.place == file
    assert error.value.allowed or error.value.hint or "which no model" in str(error)


@pytest.mark.parametrize(
    "config, problem",
    [
        ({}, "has no model_type"),
        (timm(pretrained_cfg={}), "has no input_size"),
        (VIT | {"layer_norm_eps": [1]}, OTHER_TYPE),
        (timm(pretrained_cfg={"input_size": [3]}), OTHER_TYPE),
        (timm(pretrained_cfg={"input_size": ["3", "a"]}), OTHER_TYPE),
    ],
)
def test_a_config_without_a_field_or_with_another_type(config, problem):
    with pytest.raises(InputError, match=f"^config.json {problem}"):
        hub_configs.parse(config, {})


def test_a_name_that_is_nearly_one_of_timm_is_proposed():
    with pytest.raises(InputError) as error:
        hub_configs.parse(timm(architecture="vit_smal_patch16_224"), {})
    assert "vit_small_patch16_224" in error.value.hint


def test_a_file_is_named(tmp_path):
    """test_load has files that are no JSON."""
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(InputError) as error:
        hub_configs.read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: model_type is ")


def test_a_rotary_model_of_timm_says_its_own_pool():
    """timm writes global_pool whatever the model; only the head may be another."""
    config = timm(architecture=EVA, model_args={"global_pool": "avg"})
    own = registry.facts(EVA)["arch"]
    assert hub_configs.parse(config, {}).config.arch == own
    config["model_args"] = {"global_pool": "token"}
    found = hub_configs.parse(config, {}).config.arch
    assert (found.pool, found.final_norm, found.fc_norm) == ("token", True, False)
    assert found.rotary == own.rotary


def test_fine_tunes_compute_what_timm_does():
    """SigLIP's own GELU is by tanh; timm has the exact one in models of this name."""
    name = "vit_base_patch16_siglip_224"
    images = timm()["pretrained_cfg"] | {"mean": [0.5] * 3, "std": [0.5] * 3}
    images |= {"tag": "webli", "input_size": [3, 224, 224]}
    for classes, gelu in ((0, "tanh"), (10, "exact")):
        config = timm(architecture=name, pretrained_cfg=images, num_classes=classes)
        assert hub_configs.parse(config, {}).config.architecture.gelu == gelu
    assert registry.facts(name)["arch"].gelu == "tanh"  # as all its weights
