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
from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import (
    SINGLE_LABEL,
    ViTConfig,
)
from imagepiece_jax.models.resize_positions import resize_grid
from imagepiece_jax.weights import naming
from tests.helpers import tiny_vit
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "originals"
FIXTURES = sorted(FOLDER.glob("*.npz"))
BESIDE = ("images", "outputs")
apply = jax.jit(lambda model, *inputs: model.apply(*inputs).logits, static_argnums=0)


def read_fixture(name):
    """(tensors, {images, outputs, config}) of a fixture."""
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    fields = json.loads(str(arrays.pop("config")))
    fields["arch"] = Architecture(**fields["arch"])
    fields["preprocessing"] = Preprocessing(**fields["preprocessing"])
    if "clip" in name:
        fields |= {"problem_type": "projection", "num_classes": 5}
    config = ViTConfig(**fields)
    return arrays, {key: arrays.pop(key) for key in BESIDE} | {"config": config}


@pytest.mark.parametrize("name", [path.stem for path in FIXTURES])
def test_a_checkpoints_outputs_equal_its_projects(name, tmp_path):
    tensors, facts = read_fixture(name)
    np.savez(tmp_path / "w.npz", **tensors)
    vit = imagepiece_jax.load(tmp_path / "w.npz", config=facts["config"])
    model, variables = tiny_vit.pair(vit)
    with jax.default_matmul_precision("highest"):
        ours = apply(model, variables, facts["images"].astype(np.float32))
    theirs = facts["outputs"]
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_a_towers_head_needs_its_problem_type(tmp_path):
    """Its tensors are like a classifier's."""
    tensors, facts = read_fixture("openclip")
    np.savez(tmp_path / "w.npz", **tensors)
    vit = imagepiece_jax.load(tmp_path / "w.npz", config=facts["config"])
    assert vit.config.head.is_projection
    for changes in ({"problem_type": SINGLE_LABEL}, {"num_classes": 512}):
        config = dataclasses.replace(facts["config"], **changes)
        with pytest.warns(UserWarning, match="problem_type 'projection'"):
            vit = imagepiece_jax.load(tmp_path / "w.npz", config=config)
        assert vit.config.head.has_classes


@pytest.mark.parametrize(
    "wrapped, inside",
    [
        ("module.model", ""),
        ("_orig_mod.module.net", "_checkpoint_wrapped_module."),
        ("model._orig_mod.module", ""),
        ("_fsdp_wrapped_module", "_checkpoint_wrapped_module."),
    ],
)
def test_wrappers_and_vits_pooler_are_left_out(wrapped, inside):
    """In any order and number, and inside names, beside a classifier."""
    tensors, _ = read_fixture("transformers_vit")
    expected = naming.read_timm_tensors(tensors)
    renamed = {f"{wrapped}.vit.pooler.dense.weight": np.ones((24, 24))}
    for name in tensors:
        in_block = name.replace(".layer.0.", f".layer.0.{inside}")
        renamed[f"{wrapped}.{in_block}"] = tensors[name]
    chex.assert_trees_all_equal(naming.read_timm_tensors(renamed), expected)


def test_heads_shown_by_kernels_are_compared(tmp_path):
    tensors, facts = read_fixture("vit_jax")
    np.savez(tmp_path / "w.npz", **tensors)
    config = dataclasses.replace(facts["config"], num_heads=2)
    with refused("num_heads is 2, but its tensors are of 3 heads"):
        imagepiece_jax.load(tmp_path / "w.npz", config=config)


def test_the_config_places_the_pooled_vectors_norm(tmp_path):
    """OpenCLIP's final_ln_after_pool has the same tensors."""
    tensors, facts = read_fixture("openclip")
    np.savez(tmp_path / "w.npz", **tensors)
    for fc_norm, name in ((False, "norm"), (True, "fc_norm")):
        parts = {"pool": "mean", "final_norm": not fc_norm, "fc_norm": fc_norm}
        config = facts["config"].with_arch(**parts)
        vit = imagepiece_jax.load(tmp_path / "w.npz", config=config)
        scale = vit.variables["params"][name]["scale"]
        np.testing.assert_array_equal(scale, tensors["visual.ln_post.weight"])


@pytest.mark.parametrize("part", ["pos_embed", "blocks.1.attn.qkv.bias"])
@pytest.mark.parametrize("image_size", [None, 24])
def test_a_nonfinite_value_is_an_error_at_load(tmp_path, part, image_size):
    """Also in positions, which loading changes."""
    tensors, facts = read_fixture("dinov2_registers")
    damaged = tensors[part].astype(np.float32)
    damaged.reshape(-1)[-1] = np.nan
    np.savez(tmp_path / "w.npz", **tensors | {part: damaged})
    options = {"config": facts["config"], "image_size": image_size}
    with refused("has a value that is not finite"):
        imagepiece_jax.load(tmp_path / "w.npz", **options)


def zeros(*names):
    return {name: np.zeros((4, 4), np.float32) for name in names}


PATCHES = "embeddings.patch_embeddings.projection.weight"
PROJ = "patch_embed.proj.weight"
SWIN = "swin.encoder.layers.0.attn.weight"
NORMS = [f"Transformer/encoderblock_0/LayerNorm_{i}/scale" for i in (1, 2)]
ATTENTION = [
    f"encoder.layer.0.attention.attention.{x}.weight" for x in ("key", "query")
]
VISION_NAMES = [
    f"vision_model.embeddings.{x}"
    for x in ("patch_embedding.weight", "class_embedding")
]
LLM = "language_model.model.embed_tokens.weight"
BEIT_NORM = "vit.pooler.layernorm.weight"
SCALAR = {PROJ: np.zeros(3), "cls_token": np.array(1.0)}


@pytest.mark.parametrize(
    "tensors, message",
    [
        (zeros("a", "b.c", "d", "e"), "an unsupported model, such as a, b.c, d"),
        (zeros(f"swin.{PATCHES}", SWIN), f"tensor {SWIN} is not part of transformers"),
        (zeros("img/embedding/kernel", LLM), f"tensor {LLM} is not part of"),
        (zeros(f"tower.{PROJ}", "head.conv.weight"), "head.conv.weight is not part of"),
        (zeros(f"a.{PROJ}", f"b.{PROJ}"), "one vision tower, not ['a.', 'b.']"),
        (zeros("embedding/kernel", *NORMS), "the same part, blocks.0.norm2.scale"),
        (zeros(PATCHES, *ATTENTION), "blocks.0.attn.k.weight, but not blocks.0.attn.v"),
        (zeros(*VISION_NAMES, "classifier.weight"), "CLIPForImageClassification"),
        (SCALAR, "do not fit"),
        # BEiT's pooler reads a mean.
        (zeros(f"vit.{PATCHES}", BEIT_NORM), f"tensor {BEIT_NORM} is not part"),
        (zeros("blocks.0.a", "blocks.0._orig_mod.a"), "are the same part, blocks.0.a"),
    ],
)
def test_an_unsupported_checkpoint_is_refused(tensors, message):
    with refused(message):
        naming.read_timm_tensors(tensors)


def test_a_distillation_token_without_a_head_is_a_register(tmp_path):
    """In DeiTForImageClassification, and in DeiTModel, which has no head."""
    tensors, facts = read_fixture("transformers_deit")
    classifier = {}
    for leaf in ("weight", "bias"):
        classifier[f"classifier.{leaf}"] = tensors.pop(f"cls_classifier.{leaf}")
        del tensors[f"distillation_classifier.{leaf}"]
    np.savez(tmp_path / "w.npz", **tensors)
    np.savez(tmp_path / "head.npz", **tensors | classifier)
    for file in ("w", "head"):
        vit = imagepiece_jax.load(tmp_path / f"{file}.npz", config=facts["config"])
        size = (2, *image_sides(vit.image_size), 3)
        images = np.random.default_rng(0).normal(size=size).astype(np.float32)
        out = vit.model.apply(vit.variables, images)
        assert_close(out.pooled, out.tokens[:, 0])
        assert out.tokens.shape[1] == vit.config.num_tokens
    weight = classifier["classifier.weight"]
    bias = classifier["classifier.bias"]
    assert_close(out.logits, np.asarray(out.pooled) @ weight.T + bias)


@pytest.mark.parametrize("new", [(8, 7), (3, 4), (5, 9)])
def test_bicubic_positions_are_pytorchs(new):
    """PyTorch has Keys' kernel with a = -0.75, and repeats the border."""

    def weight(x):
        outer = -0.75 * (((x - 5) * x + 8) * x - 4) * (x < 2)
        return (1.25 * x - 2.25) * x**2 + 1 if x < 1 else outer

    grid = np.random.default_rng(0).normal(size=(5, 6, 3)).astype(np.float32)
    expected = grid
    for axis, length in enumerate(new):
        old_length = grid.shape[axis]
        weights = np.zeros((length, old_length))
        for row, x in enumerate((np.arange(length) + 0.5) * old_length / length - 0.5):
            for neighbor in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                column = np.clip(neighbor, 0, old_length - 1)
                weights[row, column] += weight(abs(x - neighbor))
        expected = np.moveaxis(np.tensordot(weights, expected, (1, axis)), 0, axis)
    np.testing.assert_allclose(resize_grid(grid, new, "bicubic"), expected, atol=1e-5)


@pytest.mark.parametrize("new", [(7, 9), (3, 4), (5, 8), (1, 2)])
def test_linear_positions_equal_scipys_zoom(new):
    grid = np.random.default_rng(0).normal(size=(5, 5, 3)).astype(np.float32)
    zoomed = scipy.ndimage.zoom(grid, (new[0] / 5, new[1] / 5, 1), order=1)
    assert_close(resize_grid(grid, new, "linear"), zoomed)
