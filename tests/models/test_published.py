"""Models of folders in the hub's form: config.json and one file of weights."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import imagepiece_jax
from configs import base
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.data import class_names
from imagepiece_jax.deploy.weights import load
from imagepiece_jax.models import registry, timm_tensors
from imagepiece_jax.models.variables import fresh_variables, variable_shapes
from imagepiece_jax.training.initial_weights import InitialWeights
from tests.deploy.weights.pth import mapping, tensor, write_pth
from tests.models import tiny
from tests.models.make import create_model
from tests.refused import refused, untrained

NAMES = [f"class {i}" for i in range(tiny.CLASSES)]
SIZE = {"patch_size": 4, "embed_dim": 30, "depth": 1, "num_heads": 3}
HALF = (0.5, 0.5, 0.5)
STD = (0.25, 0.5, 0.75)
# timm's form, of a model that none of its names has.
TIMM = {
    "architecture": "vit_base_patch16_224",
    "num_classes": tiny.CLASSES,
    "label_names": NAMES,
    "model_args": SIZE,
    "pretrained_cfg": {
        "tag": None,
        "input_size": [3, tiny.SIDE, tiny.SIDE],
        "mean": HALF,
        "std": STD,
        "crop_pct": 0.9,
        "interpolation": "bilinear",
    },
}
# transformers' form of the same, but for the epsilon and the interpolation.
HF = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 30,
    "intermediate_size": 120,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "patch_size": 4,
    "image_size": tiny.SIDE,
    "id2label": {str(i): name for i, name in enumerate(NAMES)},
}
PROCESSOR = {"image_mean": HALF, "image_std": STD, "size": tiny.SIDE}


@pytest.fixture(scope="module")
def model():
    return tiny.model(depth=1, mean=HALF, std=STD)


@pytest.fixture(scope="module")
def variables(model):
    return tiny.variables(model)


@pytest.fixture(scope="module")
def tensors(variables):
    return timm_tensors.to_timm(variables)


def folder(path, config, tensors, **files):
    """A folder with this config.json, model.safetensors and other JSON files."""
    path.mkdir(exist_ok=True)
    for name, content in {"config": config, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    if tensors:
        safetensors.numpy.save_file(tensors, path / "model.safetensors")
    return path


def same(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_timms_folder_is_the_model_that_its_config_says(
    tmp_path, model, variables, tensors
):
    path = folder(tmp_path / "a", TIMM, tensors)
    found = imagepiece_jax.load(path)
    images = {"name": TIMM["architecture"], "crop": 0.9, "interpolation": "bilinear"}
    assert found.config == dataclasses.replace(model.config, **images)
    assert same(found.variables, variables)
    assert found.class_names == tuple(NAMES)
    prepared = found.preprocessing
    assert (prepared.image_size, prepared.crop) == (tiny.SIDE, 0.9)
    assert (prepared.crop_mode, prepared.interpolation) == ("center", "bilinear")
    reduced = imagepiece_jax.load(path, reduction=tiny.changed(tiny.EVIT, blocks=(0,)))
    assert reduced.model.plan != model.plan
    assert reduced.reduction.name == "evit"
    larger, values = tiny.pair(imagepiece_jax.load(path, image_size=24))
    assert larger.config.image_size == 24
    assert values["params"]["pos_embed"].shape == (1, 1 + 36, 30)


def test_transformers_folder_has_what_no_name_says(tmp_path, model, tensors):
    path = folder(tmp_path, HF, tensors, preprocessor_config=PROCESSOR)
    vit = imagepiece_jax.load(path)
    arch = vit.config.arch
    assert (arch.norm_eps, arch.resize, arch.gelu) == (1e-12, "bicubic", "exact")
    assert (vit.config.num_heads, vit.config.mean, vit.config.std) == (3, HALF, STD)
    assert vit.class_names == tuple(NAMES)
    prepared = vit.preprocessing
    assert (prepared.crop_mode, prepared.interpolation) == ("squash", "bilinear")
    # Nothing else differs from timm's form.
    plain = vit.config.with_arch(norm_eps=1e-6, resize="antialias")
    own = model.config
    images = ("crop", "crop_mode", "interpolation", "rule", "name")
    fields = {field: getattr(own, field) for field in images}
    assert dataclasses.replace(plain, **fields) == own


def test_mean_and_std_that_nothing_says_are_asked_for(tmp_path, model, tensors):
    path = folder(tmp_path, HF, tensors)
    with refused(f"folder {path}", "preprocessor_config.json"):
        imagepiece_jax.load(path)
    assert imagepiece_jax.load(path, config=model.config).config.std == STD


def test_a_training_starts_from_a_folder(tmp_path, model, tensors):
    """With the model, the images and the numbers that `load` finds there."""
    path = folder(tmp_path, HF, tensors, preprocessor_config=PROCESSOR)
    vit = imagepiece_jax.load(path)
    config = base.get_config()
    config.image_size = tiny.SIDE
    config.num_classes = tiny.CLASSES
    config.model.name = None
    config.model.dtype = "float32"
    config.model.update({k: SIZE[k] for k in SIZE}, mlp_ratio=4.0)
    config.model.arch.update(norm_eps=1e-12, resize="bicubic")
    config.init.weights = str(path)
    run = RunConfig.from_config(config)
    initial = InitialWeights(run, tmp_path / "no", *load.loaders(run))
    completed = initial.completed()
    found = completed.create_model().with_execution(drop_path_rate=0.0)
    assert found.config == vit.config
    assert completed.preprocessing() == vit.preprocessing
    assert same(initial.variables(found), vit.variables)


@pytest.mark.parametrize(
    "changes, field, value, ours",
    [
        ({"num_attention_heads": 4}, "num_heads", 4, "divide"),
        ({"hidden_size": 33}, "width", 33, "30"),
        ({"num_hidden_layers": 2}, "depth", 2, "1"),
        ({"image_size": 40}, "pos_embed", 40, "26"),
        ({"patch_size": 5}, "patch_embed", 5, "4"),
        ({"intermediate_size": 60}, "mlp", 60, "120"),
        ({"id2label": {"0": "x"}}, "num_classes", 1, "7"),
    ],
)
def test_a_config_that_contradicts_its_tensors(
    tmp_path, tensors, changes, field, value, ours
):
    path = folder(tmp_path, HF | changes, tensors, preprocessor_config=PROCESSOR)
    with refused(field, str(path), ours):
        imagepiece_jax.load(path)


def test_one_file_of_several_is_taken(tmp_path, model, variables, tensors):
    """.safetensors before PyTorch's, the usual names before others."""
    folder(tmp_path, TIMM, None)
    place = f"folder {tmp_path}"
    with refused(place, "must have one weights file"):
        imagepiece_jax.load(tmp_path)
    np.savez(tmp_path / "tuned.npz", **tensors)
    assert same(imagepiece_jax.load(tmp_path).variables, variables)
    np.savez(tmp_path / "other.npz", **tensors)
    with refused(place):
        imagepiece_jax.load(tmp_path)
    values = {name: value + 1 for name, value in tensors.items()}
    content = {
        name: tensor(name, v.size, v.shape, [s // 4 for s in v.strides])
        for name, v in values.items()
    }
    write_pth(tmp_path / "pytorch_model.bin", mapping(**content), values)
    found = imagepiece_jax.load(tmp_path).variables
    assert same(found, jax.tree.map(lambda value: value + 1, variables))
    folder(tmp_path, TIMM, tensors)
    assert same(imagepiece_jax.load(tmp_path).variables, variables)


@pytest.mark.parametrize(
    "file, fields", [("test_vit", {}), ("w", {"config": "test_vit.r160_in1k"})]
)
def test_a_name_knows_imagenets_classes(tmp_path, file, fields):
    values = tiny.fill(variable_shapes(create_model("test_vit")))
    path = tmp_path / f"{file}.npz"
    tiny.write(path, values)
    found = imagepiece_jax.load(path, **fields)
    assert found.class_names == class_names.imagenet_names()
    with untrained():
        other = imagepiece_jax.load(path, num_classes=3, **fields)
    assert other.class_names is None


def test_a_given_name_replaces_that_of_the_file(assets):
    path = assets / "weights" / "deit_tiny_patch16_224.npz"
    for other in ("deit_ti", "vit_tiny_patch16_224.augreg_in21k"):
        assert load.load(path, config=other).class_names is None


@pytest.mark.parametrize(
    "name, classes, named",
    [
        ("deit_tiny_patch16_224", 1000, True),
        ("vit_small_patch16_224", 1000, True),  # some of its weights
        ("vit_small_patch16_224.augreg_in21k_ft_in1k", 1000, True),
        ("vit_small_patch16_224.augreg_in21k", 1000, False),
        ("deit_tiny_patch16_224.fb_in1k", 10, False),
        ("vit_small_patch14_reg4_dinov2", 1000, False),  # which has no classes
        ("deit_ti", 1000, False),  # which is no name of weights
        (None, 1000, False),
    ],
)
def test_classes_of_a_public_name(name, classes, named):
    names = class_names.imagenet_names() if named else None
    assert registry.published_class_names(name, classes) == names


def test_a_new_head_is_that_of_a_training(tmp_path, model, variables, tensors):
    path = folder(tmp_path, TIMM, tensors)
    with untrained():
        fresh = imagepiece_jax.load(path, num_classes=3, seed=5)
    values = fresh.variables
    assert (fresh.model.config.num_classes, fresh.class_names) == (3, None)
    drawn = fresh_variables(fresh.model, 5)["params"]
    assert same(values["params"]["head"], drawn["head"])
    assert drawn["head"]["kernel"].std() > 0.01
    rest = {k: v for k, v in values["params"].items() if k != "head"}
    assert same(rest, {k: v for k, v in variables["params"].items() if k != "head"})
    with untrained():
        other = imagepiece_jax.load(path, num_classes=3, seed=6).variables
        named = imagepiece_jax.load(path, num_classes=3, class_names=["a", "b", "c"])
    assert not same(other, values)
    assert named.class_names == ("a", "b", "c")
    bare, values = tiny.pair(imagepiece_jax.load(path, num_classes=0))
    assert bare.config.num_classes == 0
    assert "head" not in values["params"]
    own = imagepiece_jax.load(path, num_classes=tiny.CLASSES)
    assert own.class_names == tuple(NAMES)
    assert same(own.variables, variables)


def test_both_heads_of_a_distilled_model_are_new(tmp_path):
    arch = {"dist_token": True}
    distilled = create_model(None, arch=arch, image_size=8, num_classes=7, **SIZE)
    tiny.write(tmp_path / "w.npz", tiny.fill(variable_shapes(distilled)))
    fields = {"config": distilled.config}
    with untrained():
        found = imagepiece_jax.load(tmp_path / "w.npz", num_classes=2, **fields)
    found = found.variables
    for head in ("head", "head_dist"):
        assert found["params"][head]["kernel"].shape == (30, 2)
    found = imagepiece_jax.load(tmp_path / "w.npz", num_classes=0, **fields).variables
    assert not {"head", "head_dist"} & {*found["params"]}


VIT = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
IMAGES = {"tag": "augreg_in21k_ft_in1k", "mean": HALF, "std": HALF}
IMAGES |= {"input_size": [3, 32, 32]}
NAMED = {"architecture": VIT.partition(".")[0], "num_classes": 3}
NAMED |= {"pretrained_cfg": IMAGES}


@pytest.fixture(scope="module")
def vit():
    """(model, variables) of VIT for small images."""
    model = create_model(VIT, image_size=32, num_classes=3)
    return model, tiny.fill(variable_shapes(model))


@pytest.fixture(scope="module")
def places(vit, tmp_path_factory):
    """Where it is: timm's folder, a file of its name, and one of another."""
    path = tmp_path_factory.mktemp("vit")
    tensors = timm_tensors.to_timm(vit[1])
    files = {name: path / f"{name}.npz" for name in (VIT, "mine")}
    for file in files.values():
        np.savez(file, **tensors)
    return files | {"folder": folder(path / "folder", NAMED, tensors)}


@pytest.mark.parametrize("place", ["folder", VIT, "mine"])
def test_a_public_model_is_what_its_name_says(places, vit, place):
    """In a config.json, of a file, or given."""
    named = {"config": VIT} if place == "mine" else {}
    found = imagepiece_jax.load(places[place], **named)
    assert found.config.arch == vit[0].config.arch
    assert (found.config.num_classes, found.image_size) == (3, 32)
    assert same(found.variables, vit[1])


@pytest.mark.parametrize(
    "name, text",
    [
        ("vit_base_patch16_224.dino", "width 768"),
        ("vit_tiny_r_s16_p8_224", "no name and no file"),
    ],
)
def test_a_name_that_contradicts_a_folder(places, name, text):
    with refused(text):
        imagepiece_jax.load(places["folder"], config=name)


def test_another_gelu_of_a_config_is_that_of_the_model(tmp_path, vit):
    images = IMAGES | {"tag": None}
    config = {"model_args": {"act_layer": "gelu_tanh"}, "pretrained_cfg": images}
    path = folder(tmp_path, NAMED | config, timm_tensors.to_timm(vit[1]))
    assert imagepiece_jax.load(path).config.arch.gelu == "tanh"
    exact = imagepiece_jax.read_config(path).with_arch(gelu="exact")
    assert imagepiece_jax.load(path, config=exact).config.arch.gelu == "exact"
