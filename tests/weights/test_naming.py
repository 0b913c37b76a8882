"""Checkpoints of other projects: by timm's names, and as models that compute the same.

The files in tests/fixtures/originals are of small random models of transformers, timm,
CLIP's tower in torch and Google's in Flax, with what these compute.
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
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.head import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from imagepiece_jax.models.resize_positions import resize_grid
from imagepiece_jax.weights import naming
from tests.helpers import tiny_vit
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "originals"
FIXTURES = sorted(FOLDER.glob("*.npz"))
BESIDE = ("images", "outputs")
apply = jax.jit(lambda model, *inputs: model.apply(*inputs).logits, static_argnums=0)


def stored(name):
    """(tensors, the rest) of a fixture, a ViTConfig among it."""
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
def test_a_checkpoint_computes_what_its_project_does(name, tmp_path):
    tensors, about = stored(name)
    np.savez(tmp_path / "w.npz", **tensors)
    vit = imagepiece_jax.load(tmp_path / "w.npz", config=about["config"])
    model, variables = tiny_vit.pair(vit)
    with jax.default_matmul_precision("highest"):
        ours = apply(model, variables, about["images"].astype(np.float32))
    theirs = about["outputs"]
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_the_head_of_a_tower_is_asked_for(tmp_path):
    """Its tensors are those of a classifier without names."""
    tensors, about = stored("openclip")
    np.savez(tmp_path / "w.npz", **tensors)
    vit = imagepiece_jax.load(tmp_path / "w.npz", config=about["config"])
    assert vit.config.head.is_projection
    for changes in ({"problem_type": SINGLE_LABEL}, {"num_classes": 512}):
        config = dataclasses.replace(about["config"], **changes)
        with pytest.warns(UserWarning, match="problem_type 'projection'"):
            vit = imagepiece_jax.load(tmp_path / "w.npz", config=config)
        assert vit.config.head.has_classes


@pytest.mark.parametrize("problem_type", [MULTI_LABEL, REGRESSION])
def test_another_head_than_the_config_s_keeps_its_problem_type(problem_type, tmp_path):
    tensors, about = stored("openclip")
    np.savez(tmp_path / "w.npz", **tensors)
    fields = {"name": "mine", "num_classes": 512, "problem_type": problem_type}
    config = dataclasses.replace(about["config"], **fields)
    vit = imagepiece_jax.load(tmp_path / "w.npz", config=config)
    assert (vit.config.num_classes, vit.config.problem_type) == (5, problem_type)


WRAPPERS = ("module.model", "_orig_mod.module.net", "model._orig_mod.module")


@pytest.mark.parametrize("wrapped", [*WRAPPERS, "_fsdp_wrapped_module"])
@pytest.mark.parametrize("inside", ["", "_checkpoint_wrapped_module."])
def test_wrappers_of_a_model_are_not_of_its_names(wrapped, inside):
    """In any order and number, and inside names; a classifier stands beside a tower."""
    tensors, _ = stored("transformers_vit")
    expected = naming.with_timm_names(tensors)
    renamed = {}
    for name in tensors:
        of_block = name.replace(".layer.0.", f".layer.0.{inside}")
        renamed[f"{wrapped}.{of_block}"] = tensors[name]
    assert len(renamed) == len(tensors)
    chex.assert_trees_all_equal(naming.with_timm_names(renamed), expected)


def test_a_pooler_with_a_norm_is_of_another_model():
    """BEiT's, which reads a mean; ViT's has one layer, which is left out."""
    tensors, _ = stored("transformers_vit")
    tensors["vit.pooler.dense.weight"] = np.ones((24, 24))
    assert not any("pooler" in name for name in naming.with_timm_names(tensors))
    tensors["vit.pooler.layernorm.weight"] = np.ones(24)
    with refused("tensor vit.pooler.layernorm.weight is not part"):
        naming.with_timm_names(tensors)


def test_two_names_that_are_one_without_wrappers():
    names = ("blocks.0.norm1.weight", "blocks.0._orig_mod.norm1.weight")
    with refused("are the same part, blocks.0.norm1.weight"):
        naming.with_timm_names(dict.fromkeys(names, np.ones(3)))


def test_heads_that_kernels_show_are_compared(tmp_path):
    tensors, about = stored("vit_jax")
    np.savez(tmp_path / "w.npz", **tensors)
    config = dataclasses.replace(about["config"], num_heads=2)
    with refused("num_heads is 2, but its tensors are of 3 heads"):
        imagepiece_jax.load(tmp_path / "w.npz", config=config)


def test_a_norm_of_the_pooled_vector_is_where_the_config_has_it(tmp_path):
    """OpenCLIP's final_ln_after_pool has the same tensors."""
    tensors, about = stored("openclip")
    np.savez(tmp_path / "w.npz", **tensors)
    for fc_norm, name in ((False, "norm"), (True, "fc_norm")):
        parts = {"pool": "mean", "final_norm": not fc_norm, "fc_norm": fc_norm}
        config = about["config"].with_arch(**parts)
        vit = imagepiece_jax.load(tmp_path / "w.npz", config=config)
        scale = vit.variables["params"][name]["scale"]
        np.testing.assert_array_equal(scale, tensors["visual.ln_post.weight"])


@pytest.mark.parametrize("part", ["pos_embed", "blocks.1.attn.qkv.bias"])
@pytest.mark.parametrize("image_size", [None, 24])
def test_a_value_that_is_not_finite_is_an_error_at_load(tmp_path, part, image_size):
    """Also where a tensor is changed on its way, as positions are."""
    tensors, about = stored("dinov2_registers")
    spoilt = tensors[part].astype(np.float32)
    spoilt.reshape(-1)[-1] = np.nan
    np.savez(tmp_path / "w.npz", **tensors | {part: spoilt})
    given = {"config": about["config"], "image_size": image_size}
    with refused("has a value that is not finite"):
        imagepiece_jax.load(tmp_path / "w.npz", **given)


def small(*names):
    return {name: np.zeros((4, 4), np.float32) for name in names}


PATCHES = "embeddings.patch_embeddings.projection.weight"
PROJ = "patch_embed.proj.weight"
SWIN = "swin.encoder.layers.0.attn.weight"
NORMS = [f"Transformer/encoderblock_0/LayerNorm_{i}/scale" for i in (1, 2)]
ATTENTION = [
    f"encoder.layer.0.attention.attention.{x}.weight" for x in ("key", "query")
]
OF_VISION = [
    f"vision_model.embeddings.{x}"
    for x in ("patch_embedding.weight", "class_embedding")
]
LLM = "language_model.model.embed_tokens.weight"
WIDE = {"classifier.weight": np.zeros((9, 8))}
SCALAR = {PROJ: np.zeros(3), "cls_token": np.array(1.0)}


@pytest.mark.parametrize(
    "tensors, said",
    [
        (small("a", "b.c", "d", "e"), "an unsupported model, such as a, b.c, d"),
        (small(f"swin.{PATCHES}", SWIN), f"tensor {SWIN} is not part of transformers"),
        (small("img/embedding/kernel", LLM), f"tensor {LLM} is not part of"),
        (small(f"tower.{PROJ}", "head.conv.weight"), "head.conv.weight is not part of"),
        (small(f"a.{PROJ}", f"b.{PROJ}"), "2 vision towers, a, b"),
        (
            small("embedding/kernel", "pre_logits/kernel"),
            "pre_logits.kernel is not part",
        ),
        (small("embedding/kernel", *NORMS), "the same part, blocks.0.norm2.scale"),
        (small(PATCHES, *ATTENTION), "blocks.0.attn.k.weight, but not blocks.0.attn.v"),
        (small(*OF_VISION, "classifier.weight"), "classifier reads the mean"),
        (
            small(f"dinov2.{PATCHES}", "dinov2.layernorm.weight") | WIDE,
            "reads 8 values",
        ),
        (SCALAR, "do not fit"),
    ],
)
def test_what_is_no_vision_transformer_of_ours_is_refused(tensors, said):
    with refused(said):
        naming.with_timm_names(tensors)


def test_a_distillation_token_without_a_head_is_a_register(tmp_path):
    """As in DeiTForImageClassification, and in DeiTModel, which has no head at all."""
    tensors, about = stored("transformers_deit")
    of_class = {}
    for leaf in ("weight", "bias"):
        of_class[f"classifier.{leaf}"] = tensors.pop(f"cls_classifier.{leaf}")
        del tensors[f"distillation_classifier.{leaf}"]
    np.savez(tmp_path / "w.npz", **tensors)
    np.savez(tmp_path / "head.npz", **tensors | of_class)
    for file in ("w", "head"):
        vit = imagepiece_jax.load(tmp_path / f"{file}.npz", config=about["config"])
        size = (2, *image_sides(vit.image_size), 3)
        images = np.random.default_rng(0).normal(size=size).astype(np.float32)
        out = vit.model.apply(vit.variables, images)
        assert_close(out.pooled, out.tokens[:, 0])
        assert out.tokens.shape[1] == vit.config.num_tokens
    weight = of_class["classifier.weight"]
    bias = of_class["classifier.bias"]
    assert_close(out.logits, np.asarray(out.pooled) @ weight.T + bias)


@pytest.mark.parametrize("new", [(8, 7), (3, 4), (5, 9)])
def test_bicubic_positions_are_those_of_opencv(new):
    """Which has PyTorch's kernel and borders, and no antialiasing."""
    cv2 = pytest.importorskip("cv2")
    grid = np.random.default_rng(0).normal(size=(5, 6, 3)).astype(np.float32)
    resized = cv2.resize(grid, new[::-1], interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(resize_grid(grid, new, "bicubic"), resized, atol=1e-5)


@pytest.mark.parametrize("new", [(7, 9), (3, 4), (5, 8), (1, 2)])
def test_linear_positions_are_those_of_a_zoom(new):
    grid = np.random.default_rng(0).normal(size=(5, 5, 3)).astype(np.float32)
    zoomed = scipy.ndimage.zoom(grid, (new[0] / 5, new[1] / 5, 1), order=1)
    assert_close(resize_grid(grid, new, "linear"), zoomed)
