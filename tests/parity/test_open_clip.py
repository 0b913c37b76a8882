import dataclasses
import json

import open_clip
import pytest
import torch

import imagepiece_jax
from imagepiece_jax.weights import open_clip_config as ours
from tests.helpers.parity_record import distance, noise, run_jax, run_torch
from tests.helpers.refused_calls import refused
from tools import originals

TEXT = dict(context_length=8, vocab_size=20, width=16, heads=2, layers=1)
VISION = dict(image_size=16, layers=2, width=32, head_width=16, patch_size=4)
FIELDS = {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 0.03}}
FIELDS |= {"no_ln_pre": True, "image_size": [16, 12], "pos_embed_type": "learnable"}
FIELDS |= {"patch_dropout": 0.5}
TRUNK = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "avg"}
CASES = {  # {name: (fields of vision_cfg, fields of the model)}
    "class": ({}, {}),
    "mean behind": ({"pool_type": "avg", "final_ln_after_pool": True}, {}),
    "mean": ({"pool_type": "avg"}, {"quick_gelu": True}),
    "fields": (FIELDS, {"custom_text": True}),
    "trunk": (TRUNK, {"custom_text": True}),
    "trunk without a projection": (TRUNK | {"timm_proj": "none"}, {}),
}


def make_clip(vision, model):
    trunk = "timm_model_name" in vision
    fields = {"image_size": 224, **vision} if trunk else {**VISION, **vision}
    # A trunk without a projection has its own width.
    config = {"embed_dim": 192 if trunk else 5, "vision_cfg": fields, "text_cfg": TEXT}
    config |= model
    kwargs = {k: v for k, v in config.items() if k != "custom_text"}
    kind = open_clip.CustomTextCLIP if "custom_text" in model else open_clip.CLIP
    return config, originals.randomize(kind(**kwargs))


@pytest.mark.parametrize("case", CASES)
def test_a_folder_of_open_clip_loads(tmp_path, case):
    config, model = make_clip(*CASES[case])
    preparation = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    preparation |= {"interpolation": "bicubic", "resize_mode": "squash"}
    content = {"model_cfg": config, "preprocess_cfg": preparation}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    vit = imagepiece_jax.load(tmp_path)
    assert [*vit.model.config.mean] == preparation["mean"]
    assert [*vit.model.config.std] == preparation["std"]
    assert vit.preprocessing.crop_mode == "squash"
    images = noise(2, *model.visual.image_size, 3)
    theirs = run_torch(model.encode_image, images)
    assert distance(run_jax(vit, images).logits, theirs) < 3e-5


@pytest.mark.parametrize(
    "vision, field",
    [
        ({"attentional_pool": True}, "vision_cfg.attentional_pool"),
        ({"layers": [1, 2, 1, 1]}, "vision_cfg.layers"),
        ({"timm_model_name": "convnext_base"}, "architecture is 'convnext_base'"),
        ({"a_new_field": 3}, "vision_cfg.a_new_field"),
        ({"pool_type": "max"}, "vision_cfg.pool_type"),
    ],
)
def test_unsupported_fields_are_named(vision, field):
    config = {"embed_dim": 5, "vision_cfg": VISION | vision, "text_cfg": TEXT}
    with refused(field):
        ours.parse_open_clip({"model_cfg": config})


def test_every_field_of_a_tower_is_known():
    known = {*ours.VISION_DEFAULTS, *ours.ALLOWED_VALUES, *ours.IDLE_VISION_FIELDS}
    theirs = {f.name: f.default for f in dataclasses.fields(open_clip.CLIPVisionCfg)}
    assert {*theirs} == known
    assert {k: theirs[k] for k in ours.VISION_DEFAULTS} == ours.VISION_DEFAULTS
    assert all(theirs[k] == ours.ALLOWED_VALUES[k][0] for k in ours.ALLOWED_VALUES)
