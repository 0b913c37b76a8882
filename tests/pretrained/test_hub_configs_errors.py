"""Config files that say what no model here has: one sentence, which names the field."""

import json

import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.pretrained import hub_configs
from tests.pretrained.test_hub_configs import timm

VIT, CENTER = {"model_type": "vit"}, {"size": {"shortest_edge": 256}}


@pytest.mark.parametrize(
    "config, processor, message",
    [
        ({}, {}, "config.json has no model_type"),
        ({"model_type": "resnet"}, {}, "model_type is 'resnet'; allowed: vit, deit"),
        ({"model_type": "bert"}, {}, "model_type is 'bert'; allowed: vit, deit, d"),
        ({"model_type": "siglip2"}, {}, "model_type is 'siglip2'; allowed: vit, "),
        ({"model_type": ["vit"]}, {}, r"model_type is \['vit'\]; allowed: vit, d"),
        (
            VIT | {"layer_norm_eps": [1]},
            {},
            "config.json has a field of another type: ",
        ),
        (VIT | {"hidden_act": "relu"}, {}, "hidden_act is 'relu'; allowed: gelu, "),
        (
            {"model_type": "dinov3_vit", "use_gated_mlp": True},
            {},
            "hidden_act is 'gelu'; allowed: silu, swish",
        ),
        (
            {"model_type": "dinov3_vit", "hidden_act": "silu"},
            {},
            "hidden_act is 'silu'; allowed: gelu, ",
        ),
        (VIT | {"hidden_size": "768"}, {}, "hidden_size is '768'; allowed: 1, 2, 3"),
        (VIT | {"num_attention_heads": [12]}, {}, r"num_attention_heads is \[12\]; al"),
        (VIT | {"num_channels": 4}, {}, "num_channels is 4; allowed: 3"),
        (
            VIT | {"image_size": [224, 256]},
            {},
            r"a size is \(224, 256\); allowed: s",
        ),
        (VIT, {"size": 224, "resample": 0}, "resample is 0; allowed: 2, 3"),
        (
            VIT,
            {"rescale_factor": 1 / 127.5},
            "rescale_factor is 0.0078.*; allowed: 1",
        ),
        (VIT, {"do_rescale": False}, "do_rescale is False; allowed: True"),
        (VIT, CENTER, "crop_size None; allowed: a height and a width, or a crop_s"),
        (
            VIT,
            {"size": 224, "do_center_crop": True},
            "size is 224 and crop_size None; ",
        ),
        (VIT, CENTER | {"crop_size": 384}, "crop_size 384; allowed: a height and"),
        (timm(pretrained_cfg={"input_size": [3]}), {}, "has a field of another type"),
        (
            timm(
                pretrained_cfg={
                    **timm()["pretrained_cfg"],
                    "input_size": ["3", "a"] * 2,
                }
            ),
            {},
            "has a field of another type",
        ),
        (
            timm(model_args={"img_size": "a"}),
            {},
            "the size of images is 'a'; allowed: one or two numbers of pixels",
        ),
        (timm(architecture="resnet50"), {}, "architecture is 'resnet50'; the models "),
        (timm(architecture="vit_smal_patch16_224"), {}, "mean vit_small_patch16_224?"),
        (timm(model_args={"qk_norm": True}), {}, "model_args has qk_norm=True, which"),
        (
            timm(model_args={"act_layer": "relu"}),
            {},
            "act_layer is 'relu'; allowed:",
        ),
        (
            timm(model_args={"in_chans": 1}),
            {},
            "model_args.in_chans is 1; allowed: 3",
        ),
        (
            timm(architecture="vit_small_patch16_dinov3", model_args={"reg_tokens": 1}),
            {},
            "model_args has reg_tokens for a model with rotary positions; allowed:",
        ),
        (
            timm(model_args={"global_pool": "max"}),
            {},
            "global_pool is 'max'; allowed:",
        ),
        (timm(pretrained_cfg={}), {}, "config.json has no input_size; allowed:"),
    ],
)
def test_what_no_model_here_has(config, processor, message):
    with pytest.raises(InputError, match=message):
        hub_configs.parse(config, processor)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "config.json is not JSON"),
        ("[]", "config.json is a list; allowed: an object"),
        ('{"model_type": "resnet"}', ": config.json: model_type is 'resnet'; allowed"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        hub_configs.read(tmp_path)
    assert str(error.value).startswith(str(tmp_path))


def test_a_config_says_sizes_that_tensors_must_have():
    """`load` compares them (test_published)."""
    parsed = hub_configs.parse(json.loads(json.dumps(timm())), {})
    sizes = {"image_size": 518, "embed_dim": 384}
    assert {name: parsed.sizes[name] for name in sizes} == sizes


def test_a_rotary_model_of_timm_says_its_own_pool():
    """timm writes global_pool whatever the model; only the head may be another."""
    name = "eva02_tiny_patch14_224"
    config = timm(architecture=name, model_args={"global_pool": "avg"})
    own = registry.facts(name)["arch"]
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
