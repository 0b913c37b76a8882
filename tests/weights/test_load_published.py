import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import imagepiece_jax
from imagepiece_jax.data import class_names
from imagepiece_jax.models import registry, timm_tensors
from imagepiece_jax.models.variables import draw_variables
from tests.helpers import tiny_vit
from tests.helpers.refused_calls import refused, warns_untrained

NAMES = [f"class {i}" for i in range(tiny_vit.CLASSES)]
SIZE = {"patch_size": 4, "embed_dim": 30, "depth": 1, "num_heads": 3}
HALF = (0.5, 0.5, 0.5)
STD = (0.25, 0.5, 0.75)
# timm's form, for a model under none of its names.
TIMM = {
    "architecture": "vit_base_patch16_224",
    "num_classes": tiny_vit.CLASSES,
    "label_names": NAMES,
    "model_args": SIZE,
    "pretrained_cfg": {
        "tag": None,
        "input_size": [3, tiny_vit.SIDE, tiny_vit.SIDE],
        "mean": HALF,
        "std": STD,
        "crop_pct": 0.9,
        "interpolation": "bilinear",
    },
}
# transformers' form of the same model; epsilon and interpolation differ.
HF = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 30,
    "intermediate_size": 120,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "patch_size": 4,
    "image_size": tiny_vit.SIDE,
    "id2label": {str(i): name for i, name in enumerate(NAMES)},
}
PROCESSOR = {"image_mean": HALF, "image_std": STD, "size": tiny_vit.SIDE}


@pytest.fixture(scope="module")
def model():
    return tiny_vit.model(depth=1, mean=HALF, std=STD)


@pytest.fixture(scope="module")
def variables(model):
    return tiny_vit.variables(model)


@pytest.fixture(scope="module")
def tensors(variables):
    return timm_tensors.to_timm(variables)


def write_folder(path, config, tensors, **files):
    for name, content in {"config": config, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    if tensors:
        safetensors.numpy.save_file(tensors, path / "model.safetensors")
    return path


def same(first, second):
    return jax.tree.all(jax.tree.map(np.array_equal, first, second))


def test_timms_folder_loads_its_config(tmp_path, model, variables, tensors):
    path = write_folder(tmp_path, TIMM, tensors)
    vit = imagepiece_jax.load(path)
    named = dataclasses.replace(model.config, name=TIMM["architecture"])
    assert vit.config == named.with_preprocessing(crop=0.9, interpolation="bilinear")
    assert same(vit.variables, variables)
    assert vit.class_names == tuple(NAMES)
    larger, values = tiny_vit.pair(imagepiece_jax.load(path, image_size=24))
    assert larger.config.image_size == 24
    assert values["params"]["pos_embed"].shape == (1, 1 + 36, 30)


def test_transformers_folder_loads_its_config(tmp_path, model, tensors):
    path = write_folder(tmp_path, HF, tensors, preprocessor_config=PROCESSOR)
    vit = imagepiece_jax.load(path)
    arch = vit.config.arch
    assert (arch.norm_eps, arch.resize) == (1e-12, "bicubic")
    assert vit.class_names == tuple(NAMES)
    images = vit.preprocessing
    assert (images.crop_mode, images.interpolation) == ("squash", "bilinear")
    # Nothing else differs from timm's form.
    plain = vit.config.with_arch(norm_eps=1e-6, resize="antialias")
    config = model.config
    fields = {"preprocessing": config.preprocessing, "name": config.name}
    assert dataclasses.replace(plain, **fields) == config


def test_one_of_several_weights_files_is_read(tmp_path, variables, tensors):
    write_folder(tmp_path, TIMM, None)
    np.savez(tmp_path / "tuned.npz", **tensors)
    assert same(imagepiece_jax.load(tmp_path).variables, variables)
    (tmp_path / "pytorch_model.bin").touch()  # preferred
    with refused(f"{tmp_path / 'pytorch_model.bin'}: it is damaged"):
        imagepiece_jax.load(tmp_path)


def test_only_a_public_classifiers_classes_have_names():
    names = registry.published_class_names("deit_tiny_patch16_224", 1000)
    assert names == class_names.imagenet_names()
    for name, classes in (
        ("vit_small_patch16_224.augreg_in21k", 1000),
        ("deit_tiny_patch16_224.fb_in1k", 10),
        (None, 1000),
    ):
        assert registry.published_class_names(name, classes) is None


def test_a_new_head_is_drawn_like_in_training(tmp_path, variables, tensors):
    path = write_folder(tmp_path, TIMM, tensors)
    with warns_untrained():
        fresh = imagepiece_jax.load(path, num_classes=3, seed=5)
    assert (fresh.model.config.num_classes, fresh.class_names) == (3, None)
    head = draw_variables(fresh.model, 5)["params"]["head"]
    params = variables["params"] | {"head": head}
    assert same(fresh.variables["params"], params)
    with warns_untrained():
        named = imagepiece_jax.load(path, num_classes=3, class_names=["a", "b", "c"])
    assert named.class_names == ("a", "b", "c")
    assert "head" not in imagepiece_jax.load(path, num_classes=0).variables["params"]
    same_classes = imagepiece_jax.load(path, num_classes=tiny_vit.CLASSES)
    assert same_classes.class_names == tuple(NAMES)
    assert same(same_classes.variables, variables)
