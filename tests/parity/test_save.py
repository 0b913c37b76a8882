import jax
import numpy as np
import pytest
import timm
import torch
from timm.data import resolve_model_data_config

import imagepiece_jax
from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.pretrained import Pretrained
from tests.helpers import named_models, tiny_vit
from tests.helpers.parity_record import distance, noise, run_jax, run_torch

QUICK = {"num_classes": 3, "image_size": 64, "gelu": "quick"}


def make_vit(name, reduction=None, **fields):
    """A public model with random variables whose attention is no maximum."""
    model = create_model(named_models.config(name, **fields), reduction)

    def scale_leaf(leaf):
        return leaf / np.sqrt(0.1 * leaf.shape[0]) if leaf.ndim > 1 else leaf

    return Pretrained(model, jax.tree.map(scale_leaf, tiny_vit.variables(model)))


@pytest.mark.parametrize(
    "name, fields",
    [
        ("test_vit", {"image_size": (32, 48)}),
        ("test_vit", {"reduction": "tome:r=3"}),
        *((name, QUICK) for name in ("test_vit", "test_vit2", "test_vit3")),
        ("deit_tiny_distilled_patch16_224", {"image_size": 64}),
        ("vit_tiny_patch16_224", {"num_classes": 0, "image_size": 64}),
        ("eva02_tiny_patch14_224", {"num_classes": 3, "image_size": 112}),
        ("vit_small_patch16_dinov3_qkvb", {"num_classes": 3, "image_size": 112}),
    ],
)
def test_timm_computes_equal_outputs(tmp_path, name, fields):
    vit = make_vit(name, **fields)
    folder = imagepiece_jax.save(vit, tmp_path / "m")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = noise(2, *image_sides(vit.image_size), 3)
    dense = imagepiece_jax.load(folder, reduction="none")
    assert distance(run_jax(dense, images).logits, run_torch(theirs, images)) < 1e-5
    norms = [m for m in theirs.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {max(vit.config.arch.norm_eps, 1e-6)}
    cfg = resolve_model_data_config(theirs)
    assert cfg["input_size"] == (3, *image_sides(vit.image_size))
    assert cfg["crop_pct"] == vit.preprocessing.crop
    assert (*cfg["mean"], *cfg["std"]) == (*vit.config.mean, *vit.config.std)
