"""Checkpoints of other projects: converted to timm's names, with equal outputs.

Files in tests/fixtures/originals have small random models of transformers, timm, CLIP's
tower in torch and Google's in Flax, and their outputs.
"""

import dataclasses
import json
import pathlib

import chex
import jax
import numpy as np
import pytest
import scipy.ndimage

import imagepiece_jax
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import SINGLE_LABEL, ViTConfig
from imagepiece_jax.models.resize_positions import resize_grid
from imagepiece_jax.weights import naming
from tests.helpers import tiny_vit
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "originals"
FIXTURES = sorted(FOLDER.glob("*.npz"))
apply = jax.jit(lambda model, *inputs: model.apply(*inputs).logits, static_argnums=0)


def read_fixture(name):
    """(tensors, config, images, outputs) of a fixture."""
    with np.load(FOLDER / f"{name}.npz") as file:
        tensors = {key: file[key] for key in file.files}
    fields = json.loads(str(tensors.pop("config")))
    fields["arch"] = Architecture(**fields["arch"])
    fields["preprocessing"] = Preprocessing(**fields["preprocessing"])
    if "clip" in name:
        fields |= {"problem_type": "projection", "num_classes": 5}
    images = tensors.pop("images").astype(np.float32)
    return tensors, ViTConfig(**fields), images, tensors.pop("outputs")


@pytest.mark.parametrize("name", [path.stem for path in FIXTURES])
def test_a_checkpoints_outputs_equal_its_projects(name):
    tensors, config, images, theirs = read_fixture(name)
    model, variables = tiny_vit.pair(imagepiece_jax.load(tensors, config=config))
    with jax.default_matmul_precision("highest"):
        ours = apply(model, variables, images)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_a_towers_head_needs_its_problem_type():
    """Its tensors are like a classifier's."""
    tensors, config, _, _ = read_fixture("openclip")
    assert imagepiece_jax.load(tensors, config=config).config.head.is_projection
    for changes in ({"problem_type": SINGLE_LABEL}, {"num_classes": 512}):
        changed = dataclasses.replace(config, **changes)
        with pytest.warns(UserWarning, match="problem_type 'projection'"):
            vit = imagepiece_jax.load(tensors, config=changed)
        assert vit.config.head.has_classes


def test_wrappers_and_vits_pooler_are_left_out():
    tensors = read_fixture("transformers_vit")[0]
    wrapped = "_orig_mod.module.net"
    block = ".layer.0._fsdp_wrapped_module._checkpoint_wrapped_module."
    renamed = {f"{wrapped}.vit.pooler.dense.weight": np.ones((24, 24))}
    for name, tensor in tensors.items():
        renamed[f"{wrapped}.{name.replace('.layer.0.', block)}"] = tensor
    expected = naming.read_timm_tensors(tensors)
    chex.assert_trees_all_equal(naming.read_timm_tensors(renamed), expected)


def test_heads_shown_by_kernels_are_compared():
    tensors, config, _, _ = read_fixture("vit_jax")
    with refused("num_heads is 2, but its tensors are of 3 heads"):
        imagepiece_jax.load(tensors, config=dataclasses.replace(config, num_heads=2))


def test_the_config_places_the_pooled_vectors_norm():
    """OpenCLIP's final_ln_after_pool has the same tensors."""
    tensors, config, _, _ = read_fixture("openclip")
    for fc_norm, name in ((False, "norm"), (True, "fc_norm")):
        parts = {"pool": "mean", "final_norm": not fc_norm, "fc_norm": fc_norm}
        vit = imagepiece_jax.load(tensors, config=config.with_arch(**parts))
        scale = vit.variables["params"][name]["scale"]
        np.testing.assert_array_equal(scale, tensors["visual.ln_post.weight"])


@pytest.mark.parametrize("part", ["pos_embed", "blocks.1.attn.qkv.bias"])
def test_a_nonfinite_value_is_an_error_at_load(part):
    tensors, config, _, _ = read_fixture("dinov2_registers")
    damaged = tensors[part].astype(np.float32)
    damaged.reshape(-1)[-1] = np.nan
    with refused("has a value that is not finite"):
        imagepiece_jax.load(tensors | {part: damaged}, config=config, image_size=24)


def zeros(*names):
    return {name: np.zeros((4, 4), np.float32) for name in names}


PATCHES = "embeddings.patch_embeddings.projection.weight"
PROJ = "patch_embed.proj.weight"
SWIN = "swin.encoder.layers.0.attn.weight"
KEY = "encoder.layer.0.attention.attention.key.weight"
QUERY = KEY.replace("key", "query")
CLIP_NAMES = ["classifier.weight", "vision_model.embeddings.class_embedding"]
CLIP_NAMES.append("vision_model.embeddings.patch_embedding.weight")
BEIT_NORM = "vit.pooler.layernorm.weight"


@pytest.mark.parametrize(
    "tensors, message",
    [
        (zeros("a", "b.c", "d", "e"), "an unsupported model, such as a, b.c, d"),
        (zeros(f"swin.{PATCHES}", SWIN), f"tensor {SWIN} is not part of transformers"),
        (zeros(f"tower.{PROJ}", "head.conv.weight"), "head.conv.weight is not part of"),
        (zeros(f"a.{PROJ}", f"b.{PROJ}"), "one vision tower, not ['a.', 'b.']"),
        (zeros("blocks.0.a", "blocks.0._orig_mod.a"), "are the same part, blocks.0.a"),
        (zeros(PATCHES, KEY, QUERY), "blocks.0.attn.k.weight, but not blocks.0.attn.v"),
        (zeros(*CLIP_NAMES), "CLIPForImageClassification"),
        (zeros(PROJ) | {"cls_token": np.array(1.0)}, "do not fit"),
        # BEiT's pooler reads a mean.
        (zeros(f"vit.{PATCHES}", BEIT_NORM), f"tensor {BEIT_NORM} is not part"),
    ],
)
def test_an_unsupported_checkpoint_is_refused(tensors, message):
    with refused(message):
        naming.read_timm_tensors(tensors)


def test_a_distillation_token_without_a_head_is_a_register():
    """In DeiTForImageClassification, and in DeiTModel, which has no head."""
    tensors, config, images, _ = read_fixture("transformers_deit")
    weight, bias = (
        tensors.pop(f"cls_classifier.{leaf}") for leaf in ("weight", "bias")
    )
    classifier = {"classifier.weight": weight, "classifier.bias": bias}
    encoder = {k: v for k, v in tensors.items() if "distillation_classifier" not in k}
    for state_dict in (encoder, encoder | classifier):
        vit = imagepiece_jax.load(state_dict, config=config)
        out = vit.model.apply(vit.variables, images)
        assert_close(out.pooled, out.tokens[:, 0])
        assert out.tokens.shape[1] == vit.config.num_tokens
    assert_close(out.logits, np.asarray(out.pooled) @ weight.T + bias)


@pytest.mark.parametrize("new", [(8, 7), (3, 4), (5, 9)])
def test_bicubic_positions_are_pytorchs(new):
    """PyTorch has Keys' kernel with a = -0.75, and repeats the border."""
    grid = np.random.default_rng(0).normal(size=(5, 6, 3)).astype(np.float32)
    expected = grid
    for axis, length in enumerate(new):
        old_length = grid.shape[axis]
        centers = (np.arange(length) + 0.5) * old_length / length - 0.5
        x = np.abs(centers[:, None] - np.arange(-2, old_length + 2))
        outer = -0.75 * (((x - 5) * x + 8) * x - 4) * (x < 2)
        weights = np.where(x < 1, (1.25 * x - 2.25) * x**2 + 1, outer)
        lines = np.pad(np.moveaxis(expected, axis, 0), [(2, 2), (0, 0), (0, 0)], "edge")
        expected = np.moveaxis(np.tensordot(weights, lines, 1), 0, axis)
    np.testing.assert_allclose(resize_grid(grid, new, "bicubic"), expected, atol=1e-5)


@pytest.mark.parametrize("new", [(7, 9), (3, 4), (5, 8), (1, 2)])
def test_linear_positions_equal_scipys_zoom(new):
    grid = np.random.default_rng(0).normal(size=(5, 5, 3)).astype(np.float32)
    zoomed = scipy.ndimage.zoom(grid, (new[0] / 5, new[1] / 5, 1), order=1)
    assert_close(resize_grid(grid, new, "linear"), zoomed)
