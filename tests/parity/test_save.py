import chex
import jax
import numpy as np
import pytest
import timm
import torch
from timm.data import resolve_model_data_config

import imagepiece_jax
from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.models import registry
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import variable_shapes
from tests.helpers import made_up_recoveries, named_models, tiny_vit
from tests.helpers.parity_record import distance, noise, run_jax, run_torch
from tools import originals

NAMES = ("test_vit.r160_in1k", "test_vit2.r160_in1k", "test_vit3.r160_in1k")


def save_and_compare(folder, vit):
    """Save a model, compare it with timm's model of the folder, and return timm's."""
    imagepiece_jax.save(vit, folder)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = noise(2, *image_sides(vit.image_size), 3)
    expected = run_torch(theirs, images)
    norms = [m for m in theirs.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {max(vit.model.config.arch.norm_eps, 1e-6)}
    dense = imagepiece_jax.load(folder, reduction="none")
    assert distance(run_jax(dense, images).logits, expected) < 1e-5
    return theirs


def make_vit(name, reduction=None, **fields):
    """A public model with random variables whose attention is no maximum."""
    model = create_model(named_models.config(name, **fields), reduction)

    def scale_leaf(leaf):
        return leaf / np.sqrt(0.1 * leaf.shape[0]) if leaf.ndim > 1 else leaf

    variables = jax.tree.map(scale_leaf, tiny_vit.fill(variable_shapes(model)))
    return Pretrained(model, variables)


@pytest.mark.parametrize(
    "name, fields",
    [
        ("test_vit", {"image_size": (32, 48)}),
        ("test_vit", {"reduction": "tome:r=3"}),
        ("deit_tiny_distilled_patch16_224", {"image_size": 64}),
        ("vit_tiny_patch16_224", {"num_classes": 0, "image_size": 64}),
        ("eva02_tiny_patch14_224", {"num_classes": 3, "image_size": 112}),
        ("vit_small_patch16_dinov3_qkvb", {"num_classes": 3, "image_size": 112}),
    ],
)
def test_timm_computes_equal_outputs(tmp_path, name, fields):
    save_and_compare(tmp_path / "m", make_vit(name, **fields))


def test_timm_reads_a_recovered_folder_as_its_dense_model(tmp_path):
    public = make_vit("test_vit").with_reduction(None)
    vit = made_up_recoveries.recovered(public, reductions=("tome:r=3",))
    vits = {"public": public, "dense": vit, "reduced": vit.with_reduction("tome:r=3")}
    tensors = []
    for name, vit_form in vits.items():
        folder = imagepiece_jax.save(vit_form, tmp_path / name)
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True)
        tensors.append(originals.memory(theirs))
    chex.assert_trees_all_equal(*tensors)


@pytest.mark.parametrize("name", NAMES)
def test_public_architectures_keep_their_transform(tmp_path, name):
    assert registry.model_config(name).arch.gelu == "exact"
    vit = make_vit(name, num_classes=3, image_size=64, gelu="quick")
    theirs = save_and_compare(tmp_path / "m", vit)
    cfg = resolve_model_data_config(theirs)
    assert cfg["input_size"] == (3, 64, 64)
    assert cfg["crop_pct"] == 0.95
    assert (*cfg["mean"], *cfg["std"]) == (0.5,) * 6
