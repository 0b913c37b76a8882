"""Families at full width and depth against timm.

Random weights make faults visible: tokens at the first norm are small (its epsilon),
MLPs work where kinds of GELU differ, and LayerScale and positions have trained
magnitudes. Float32, with products in the highest precision.
"""

import numpy as np
import pytest
import timm
import torch

from imagepiece_jax.models.create import create_model
from imagepiece_jax.weights import naming
from tests.helpers import named_models
from tests.helpers.parity_record import distance, noise, record, run_tensors, run_torch
from tools import originals

# {family: (weights by timm's name, changed fields)}. Models beyond a test's memory have
# their whole width and less depth.
FAMILIES = {
    "DeiT": ("deit_tiny_patch16_224.fb_in1k", {}),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224.fb_in1k", {}),
    "DeiT-III": ("deit3_small_patch16_224.fb_in1k", {}),
    "ViT AugReg": ("vit_tiny_patch16_224.augreg_in21k", {}),
    "ViT AugReg, heads of 80": ("vit_huge_patch14_224.orig_in21k", {"depth": 2}),
    "MAE": ("vit_base_patch16_224.mae", {}),
    "DINO": ("vit_small_patch16_224.dino", {}),
    "DINOv2": ("vit_small_patch14_dinov2.lvd142m", {}),
    "DINOv2, registers": ("vit_small_patch14_reg4_dinov2.lvd142m", {}),
    "DINOv2, SwiGLU": ("vit_giant_patch14_dinov2.lvd142m", {"depth": 2}),
    "CLIP, OpenAI": ("vit_base_patch32_clip_224.openai", {}),
    "CLIP, OpenCLIP": ("vit_base_patch32_clip_224.laion2b", {}),
    "CLIP, heads of 88": ("vit_giant_patch14_clip_224.laion2b", {"depth": 2}),
    "SigLIP": ("vit_base_patch16_siglip_224.webli", {}),
    "SigLIP, So400m at 384": ("vit_so400m_patch14_siglip_384.webli", {"depth": 2}),
    "SigLIP 2": ("vit_base_patch16_siglip_224.v2_webli", {}),
    "mean of patches": ("vit_medium_patch16_reg4_gap_256.sbb_in12k", {}),
}
ACTIVATIONS = {"exact": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu"}
CLOSE = 1e-4  # of the largest absolute value


def randomize(model):
    """A timm model with random weights; see the module."""
    rng = torch.Generator().manual_seed(0)
    for name, leaf in model.named_parameters():
        noise = torch.randn(leaf.shape, generator=rng)
        part = name.rpartition(".")[0]
        if part.endswith(("norm", "norm1", "norm2", "norm_pre", "fc_norm")):
            noise = 1 + 0.3 * noise if name.endswith("weight") else 0.1 * noise
        elif name.endswith("gamma"):
            noise = 0.5 + 0.3 * noise
        elif name.startswith(("pos_", "cls_", "reg_", "dist_", "patch_embed")):
            fan_in = leaf[0].numel() if leaf.ndim == 4 else 1
            noise = 0.01 * noise / fan_in**0.5
        elif name.endswith("mlp.fc1.bias"):
            noise = 0.3 * noise - 2
        elif name.endswith("mlp.fc2.weight"):
            noise = 10 * noise / leaf.shape[1] ** 0.5
        elif leaf.ndim == 2:
            noise = noise / leaf.shape[1] ** 0.5
        else:
            noise = 0.3 * noise
        leaf.data.copy_(noise)
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_tokens_equal_timms(family):
    name, fields = FAMILIES[family]
    ours = create_model(named_models.config(name, num_classes=7, **fields))
    side = ours.config.image_size
    options = {"num_classes": 7, **fields}
    if ours.config.arch.mlp == "gelu":
        options["act_layer"] = ACTIVATIONS[ours.config.arch.gelu]
    theirs = randomize(timm.create_model(name, pretrained=False, **options))
    images = noise(2, side, side, 3)
    tensors = originals.memory(theirs)
    out = run_tensors(ours, naming.read_timm_tensors(tensors), images)
    distances = {
        "logits": distance(out.logits, run_torch(theirs, images)),
        "tokens": distance(out.tokens, run_torch(theirs.forward_features, images)),
    }
    assert max(distances.values()) < CLOSE
    parameters = sum(int(np.size(tensor)) for tensor in tensors.values())
    record(family=family, name=name, fields=fields, parameters=parameters, **distances)
