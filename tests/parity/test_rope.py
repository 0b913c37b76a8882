"""DINOv3, EVA02 and related models at full width against timm.

Weights are random; their magnitude lets no fault hide (tools/fixtures.py).
"""

import chex
import pytest
import timm
import torch

from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.models import registry
from imagepiece_jax.models.create import create_model
from imagepiece_jax.weights import naming
from tests.helpers import named_models
from tests.helpers.parity_record import distance, noise, record, run_tensors, run_torch
from tests.weights.test_naming_rope import dinov3_file, eva_file
from tools import fixtures, originals

ALLOWED = 1e-4  # of the largest value
# {timm's name: another image size than the published one, or None}
MODELS = {
    "vit_small_patch16_dinov3.lvd1689m": None,
    "vit_small_patch16_dinov3_qkvb.lvd1689m": (224, 160),
    "vit_small_plus_patch16_dinov3_qkvb.lvd1689m": None,
    "vit_small_patch16_lingbot.robbyant": (128, 128),
    "eva02_tiny_patch14_336.mim_in22k_ft_in1k": None,
    "eva02_small_patch14_224.mim_in22k": (280, 168),
    "eva02_base_patch14_224.mim_in22k": None,
    "eva02_base_patch16_clip_224.merged2b": None,
    "vit_medium_patch16_rope_reg1_gap_256.sbb_in1k": None,
    "vit_mediumd_patch16_rope_reg1_gap_256.sbb_in1k": (128, 192),
    "vit_small_patch16_rope_224.naver_in1k": (160, 224),
    "vit_small_patch16_rope_ape_224.naver_in1k": None,
    "vit_pe_spatial_tiny_patch16_512.fb": (256, 128),
    "vit_pe_core_tiny_patch16_384.fb": None,
}

FAMILIES = {  # {part of a name: family}
    "dinov3": "DINOv3",
    "lingbot": "LingBot",
    "eva02": "EVA-02",
    "rope": "ViT with rotary positions",
    "_pe_": "Perception Encoder",
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_features_equal_timms(name):
    size = MODELS[name] or registry.model_config(name).image_size
    options = {"img_size": size} if MODELS[name] else {}
    theirs = timm.create_model(name, pretrained=False, **options)
    fixtures.randomize_model(theirs.eval())
    ours = create_model(named_models.config(name, image_size=size))
    raw = originals.memory(theirs)
    tensors = naming.read_timm_tensors(raw)
    pixels = noise(2, *image_sides(size), 3)
    out = run_tensors(ours, tensors, pixels)
    distances = {
        "logits": distance(out.logits, run_torch(theirs, pixels)),
        "tokens": distance(out.tokens, run_torch(theirs.forward_features, pixels)),
    }
    family = next(family for part, family in FAMILIES.items() if part in name)
    parameters = sum(leaf.numel() for leaf in theirs.parameters())
    record(family=family, name=name, parameters=parameters, **distances)
    assert max(distances.values()) < ALLOWED / 10
    packed = naming.pack_for_timm(tensors, ours.config.arch, name.partition(".")[0])
    chex.assert_trees_all_equal(packed, raw)


@pytest.mark.parametrize("new", [(224, 224), (280, 168)])
def test_positions_are_resized_like_timm(new):
    name = "eva02_tiny_patch14_336.mim_in22k_ft_in1k"
    theirs = timm.create_model(name, pretrained=False)
    fixtures.randomize_model(theirs.eval())
    tensors = naming.read_timm_tensors(originals.memory(theirs))
    theirs.set_input_size(new)
    pixels = noise(2, *new, 3)
    ours = create_model(named_models.config(name, image_size=new))
    out = run_tensors(ours, tensors, pixels)
    assert distance(out.logits, run_torch(theirs, pixels)) < ALLOWED


@pytest.mark.parametrize(
    "name, rename",
    [
        ("vit_small_patch16_dinov3_qkvb", dinov3_file),
        ("vit_small_plus_patch16_dinov3_qkvb", dinov3_file),
        ("eva02_base_patch16_clip_224", eva_file),
        ("eva02_base_patch16_clip_224", lambda tensors: tensors),
    ],
)
def test_authors_names_are_read_like_by_timm(name, rename):
    size = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    model = timm.create_model(name, pretrained=False, **size)
    fixtures.randomize_model(model)
    theirs = rename(originals.memory(model))
    tensors = {k: torch.from_numpy(v) for k, v in theirs.items()}
    by_timm = timm.models.eva.checkpoint_filter_fn(tensors, model)
    assert by_timm.keys() == model.state_dict().keys()
    expected = naming.read_timm_tensors({k: v.numpy() for k, v in by_timm.items()})
    actual = naming.read_timm_tensors({f"module.{k}": v for k, v in theirs.items()})
    chex.assert_trees_all_equal(actual, expected)
