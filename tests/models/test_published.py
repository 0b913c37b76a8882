"""Models of folders in the hub's form: config.json and one file of weights."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import imagepiece_jax
from configs import base
from imagepiece_jax.cli import Overrides
from imagepiece_jax.data import class_names
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import convert, registry
from imagepiece_jax.models.config import ModelConfig, create_model
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import fresh_variables, variable_shapes
from imagepiece_jax.pretrained import load, runs, timm_config
from imagepiece_jax.pretrained.with_config import read_with_config
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.initial_weights import InitialWeights
from tests.models import tiny
from tests.pretrained.test_files import mapping, tensor, write_pth

NAMES = [f"class {i}" for i in range(tiny.CLASSES)]
SIZE = {"patch_size": 4, "embed_dim": 30, "depth": 1, "num_heads": 3}
HALF, STD = (0.5, 0.5, 0.5), (0.25, 0.5, 0.75)
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
    return convert.to_timm(variables)


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
    assert found.model == model and same(found.variables, variables)
    assert found.class_names == tuple(NAMES)
    prepared = found.preprocessing
    assert (prepared.image_size, prepared.crop) == (tiny.SIDE, 0.9)
    assert (prepared.crop_mode, prepared.interpolation) == ("center", "bilinear")
    reduced = imagepiece_jax.load(path, reduction={**tiny.EVIT, "blocks": (0,)})
    assert reduced.model.plan != model.plan and reduced.reduction["name"] == "evit"
    with pytest.raises(InputError, match="image_size is 22; allowed: multiples of"):
        imagepiece_jax.load(path, image_size=22)
    larger, values = tiny.pair(imagepiece_jax.load(path, image_size=24, gelu="tanh"))
    assert larger.arch.gelu == "tanh"
    assert values["params"]["pos_embed"].shape == (1, 1 + 36, 30)


def test_transformers_folder_has_what_no_name_says(tmp_path, model, tensors):
    path = folder(tmp_path, HF, tensors, preprocessor_config=PROCESSOR)
    vit = imagepiece_jax.load(path)
    arch, found = vit.model.arch, vit.model
    assert (arch.norm_eps, arch.resize, arch.gelu) == (1e-12, "bicubic", "exact")
    assert (found.num_heads, found.mean, found.std) == (3, HALF, STD)
    assert vit.class_names == tuple(NAMES)
    prepared = vit.preprocessing
    assert (prepared.crop_mode, prepared.interpolation) == ("squash", "bilinear")
    # Nothing else differs from timm's form.
    parts = {"norm_eps": 1e-6, "resize": "antialias"}
    config = load.read(path).config
    assert config.name is None
    assert dataclasses.replace(config, **parts).create() == model


def test_mean_and_std_that_nothing_says_are_asked_for(tmp_path, tensors):
    path = folder(tmp_path, HF, tensors)
    with pytest.raises(InputError) as refused:
        imagepiece_jax.load(path)
    start = f"folder {path}: mean and std are in no tensor; place its preprocessor"
    assert str(refused.value).startswith(start)
    found = imagepiece_jax.load(path, mean=HALF, std=STD).model
    assert found.std == STD


def test_commands_make_the_model_of_a_folder(tmp_path, model, tensors):
    """Without a config, with an override, and to start a training from."""
    path = folder(tmp_path, HF, tensors, preprocessor_config=PROCESSOR)
    loaded, variables = tiny.pair(imagepiece_jax.load(path))
    config, weights = read_with_config(path, base.get_config(), Overrides())
    config.model.dtype = "float32"
    assert (
        RunConfig.from_config(config).create_model().clone(drop_path_rate=0.0) == loaded
    )
    assert same(weights.variables(loaded), variables)
    json.dumps(config.to_dict())  # as a run keeps it
    crop = RunConfig.from_config(config).preprocessing()
    assert (crop.crop, crop.crop_mode, crop.interpolation) == (
        1.0,
        "squash",
        "bilinear",
    )
    assert runs.model_fields(config.to_dict())["arch"]["norm_eps"] == 1e-12
    config.init.weights = str(path)
    run = RunConfig.from_config(config)
    assert InitialWeights(run).normalization(tmp_path / "no") == ({}, [])
    started = InitialWeights(run).variables(run.create_model())
    assert same(started, variables)
    tuned = Overrides([("reduction.name", "random")])
    assert (
        read_with_config(path, base.get_config(), tuned)[0].reduction.name == "random"
    )
    with pytest.raises(InputError, match="num_heads is 6, but folder .* 3"):
        read_with_config(path, base.get_config(), Overrides([("model.num_heads", "6")]))


@pytest.mark.parametrize(
    "changes, field, value, ours",
    [
        ({"num_attention_heads": 4}, "num_heads", 4, "divisors of"),
        ({"hidden_size": 32}, "embed_dim", 32, "30"),
        ({"num_hidden_layers": 2}, "depth", 2, "1"),
        ({"image_size": 40}, "image_size", 40, "20"),
        ({"patch_size": 5}, "patch_size", 5, "4"),
        ({"intermediate_size": 60}, "mlp_ratio", 2.0, "4.0"),
        ({"id2label": {"0": "x"}}, "num_classes", 1, "7"),
    ],
)
def test_a_config_that_contradicts_its_tensors(
    tmp_path, tensors, changes, field, value, ours
):
    path = folder(tmp_path, HF | changes, tensors, preprocessor_config=PROCESSOR)
    with pytest.raises(InputError) as error:
        imagepiece_jax.load(path)
    assert (error.value.field, error.value.value) == (field, value)
    assert str(path) in error.value.place and ours in str(error.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"mean": STD}, r"mean is \(0.25, 0.5, 0.75\), but folder .* has \(0.5, 0.5, "),
        ({"num_heads": 5}, "num_heads is 5, but folder .* has 3; allowed: 3"),
        ({"name": "deit3_small_patch16_224"}, "embed_dim of 'deit3_small_patch16_224"),
        ({"image_size": [16, 18]}, r"image_size is \(16, 18\); allowed: multiples"),
        ({"norm_eps": 1e-5}, "norm_eps is 1e-05, but folder .* has 1e-06; allowed: "),
    ],
)
def test_fields_that_contradict_a_folder(tmp_path, tensors, fields, message):
    path = folder(tmp_path, TIMM, tensors)
    with pytest.raises(InputError, match=message):
        imagepiece_jax.load(path, **fields)


def test_one_file_of_several_is_taken(tmp_path, model, variables, tensors):
    """.safetensors before PyTorch's, the usual names before others."""
    folder(tmp_path, TIMM, None)
    with pytest.raises(InputError, match="weights files none; allowed: one, such"):
        imagepiece_jax.load(tmp_path)
    np.savez(tmp_path / "tuned.npz", **tensors)
    assert same(imagepiece_jax.load(tmp_path).variables, variables)
    np.savez(tmp_path / "other.npz", **tensors)
    with pytest.raises(
        InputError, match="weights files other.npz, tuned.npz; allowed:"
    ):
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
    "file, classes, asked, named",
    [
        ("test_vit.r160_in1k", 1000, None, True),
        ("test_vit", 1000, None, True),
        ("test_vit", 10, None, False),
        ("w", 1000, "test_vit.r160_in1k", True),
        ("w", 1000, None, False),  # says what its tensors do not, but no name
    ],
)
def test_a_file_by_its_name_knows_imagenets_names(
    tmp_path, file, classes, asked, named
):
    model = create_model("test_vit", num_classes=classes)
    zeros = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(model, 160)
    )
    np.savez(tmp_path / f"{file}.npz", **convert.to_timm(zeros))
    fields = {"name": asked} if asked else {}
    if file == "w" and not asked:
        fields = registry.facts("test_vit")
        fields = {field: fields[field] for field in ("num_heads", "mean", "std")}
        fields |= {"gelu": "exact", "norm_eps": 1e-6, "resize": "antialias"}
    found = imagepiece_jax.load(tmp_path / f"{file}.npz", **fields)
    assert found.class_names == (class_names.imagenet_names() if named else None)
    other = imagepiece_jax.load(found.origin.path, num_classes=3, **fields)
    assert other.class_names is None


def test_a_size_that_is_asked_for_leaves_a_file_its_classes(assets):
    """As the configs of DeiT ask for it; a public name replaces that of the file."""
    path = assets / "weights" / "deit_tiny_patch16_224.npz"
    found = load.read(path, ModelConfig(name="deit_ti"))
    assert found.class_names == class_names.imagenet_names()
    other = ModelConfig(name="vit_tiny_patch16_224.augreg_in21k")
    assert load.read(path, other).class_names is None


@pytest.mark.parametrize(
    "name, classes, named",
    [
        ("deit_tiny_patch16_224", 1000, True),
        ("vit_small_patch16_224", 1000, True),  # some of its weights
        ("vit_small_patch16_224.augreg_in21k_ft_in1k", 1000, True),
        ("vit_small_patch16_224.augreg_in21k", 1000, False),
        ("deit_tiny_patch16_224.fb_in1k", 10, False),
        ("vit_small_patch14_reg4_dinov2", 1000, False),  # which has no classes
        ("deit_ti", 1000, False),  # a size
        (None, 1000, False),
    ],
)
def test_classes_of_a_public_name(name, classes, named):
    names = class_names.imagenet_names() if named else None
    assert timm_config.published_class_names(name, classes) == names


def test_a_new_head_is_that_of_a_training(tmp_path, model, variables, tensors):
    path = folder(tmp_path, TIMM, tensors)
    fresh = imagepiece_jax.load(path, num_classes=3, seed=5)
    values = fresh.variables
    assert (fresh.model.num_classes, fresh.class_names) == (3, None)
    drawn = fresh_variables(fresh.model, tiny.SIDE, 5)["params"]
    assert same(values["params"]["head"], drawn["head"])
    assert drawn["head"]["kernel"].std() > 0.01
    rest = {k: v for k, v in values["params"].items() if k != "head"}
    assert same(rest, {k: v for k, v in variables["params"].items() if k != "head"})
    other = imagepiece_jax.load(path, num_classes=3, seed=6).variables
    assert not same(other, values)
    named = imagepiece_jax.load(path, num_classes=3, class_names=["a", "b", "c"])
    assert named.class_names == ("a", "b", "c")
    bare, values = tiny.pair(imagepiece_jax.load(path, num_classes=0))
    assert bare.num_classes == 0 and "head" not in values["params"]
    own = imagepiece_jax.load(path, num_classes=tiny.CLASSES)
    assert own.class_names == tuple(NAMES) and same(own.variables, variables)


def test_both_heads_of_a_distilled_model_are_new(tmp_path):
    arch = {"dist_token": True}
    distilled = create_model(None, arch=arch, image_size=8, num_classes=7, **SIZE)
    values = tiny.fill(variable_shapes(distilled, 8))
    np.savez(tmp_path / "w.npz", **convert.to_timm(values))
    fields = {"arch": arch, "num_heads": 3, "mean": HALF, "std": STD}
    found = imagepiece_jax.load(tmp_path / "w.npz", num_classes=2, **fields).variables
    for head in ("head", "head_dist"):
        assert found["params"][head]["kernel"].shape == (30, 2)
    found = imagepiece_jax.load(tmp_path / "w.npz", num_classes=0, **fields).variables
    assert not {"head", "head_dist"} & {*found["params"]}


# What a name, given or in a config, stands for


VIT = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture(scope="module")
def vit():
    """(model, tensors) of VIT for small images."""
    model = create_model(VIT, image_size=32, num_classes=3)
    return model, convert.to_timm(tiny.fill(variable_shapes(model, 32)))


def of_timm(path, tensors):
    """timm's folder of the same."""
    images = {"tag": "augreg_in21k_ft_in1k", "mean": HALF, "std": HALF}
    images |= {"input_size": [3, 32, 32]}
    config = {"architecture": VIT.partition(".")[0], "num_classes": 3}
    return folder(path, config | {"pretrained_cfg": images}, tensors)


WRONG = [
    ({"num_heads": 6}, "^num_heads is 6, but .* has 3; allowed: 3"),
    ({"norm_eps": 1e-3}, "^norm_eps is 0.001, but .* has 1e-06; allowed: 1e-06"),
    ({"resize": "offset"}, "^resize is 'offset', but .* has 'antialias'"),
]


@pytest.mark.parametrize(
    "fields, message",
    [
        *WRONG,
        ({"name": "deit_tiny_patch16_224.fb_in1k"}, r"^mean of 'deit_tiny_.* is \(0.4"),
        ({"name": "vit_base_patch16_224.dino"}, "^embed_dim of 'vit_base_.* is 768"),
        ({"name": "vit_tiny_r_s16_p8_224"}, "name is 'vit_tiny_r_s16_p8"),
    ],
)
def test_what_contradicts_the_name_in_a_folder(tmp_path, vit, fields, message):
    path = of_timm(tmp_path, vit[1])
    with pytest.raises(InputError, match=message):
        imagepiece_jax.load(path, **fields)
    assert imagepiece_jax.load(path, name=VIT, num_heads=3).model.num_heads == 3
    assert imagepiece_jax.load(path, gelu="tanh").model.arch.gelu == "tanh"


def test_a_name_with_another_gelu_contradicts_a_folder(tmp_path, vit):
    images = {"tag": None, "mean": HALF, "std": HALF, "input_size": [3, 32, 32]}
    config = {"architecture": VIT.partition(".")[0], "num_classes": 3}
    config |= {"model_args": {"act_layer": "gelu_tanh"}, "pretrained_cfg": images}
    path = folder(tmp_path, config, vit[1])
    assert imagepiece_jax.load(path).model.arch.gelu == "tanh"
    with pytest.raises(InputError, match="gelu of 'vit_tiny_.*' is 'exact', but folde"):
        imagepiece_jax.load(path, name=VIT)


@pytest.mark.parametrize("called", ["mine", VIT])
@pytest.mark.parametrize("fields, message", WRONG)
def test_what_contradicts_the_name_of_a_file(tmp_path, vit, called, fields, message):
    path = tmp_path / f"{called}.npz"
    np.savez(path, **vit[1])
    named = {} if called == VIT else {"name": VIT}
    with pytest.raises(InputError, match=message):
        imagepiece_jax.load(path, **named, **fields)
    assert imagepiece_jax.load(path, **named, num_heads=3).model == vit[0]
    assert imagepiece_jax.load(path, **named, gelu="tanh").model.arch.gelu == "tanh"


def google(tensors):
    """A ViT's tensors as Google's files have them, heads of their own axis."""
    names = {
        "cls_token": "cls",
        "pos_embed": "Transformer/posembed_input/pos_embedding",
    }
    found = {theirs: tensors[ours] for ours, theirs in names.items()}
    modules = {"norm": "Transformer/encoder_norm", "head": "head"}
    modules |= {"patch_embed.proj": "embedding"}
    blocks = range(len({name.split(".")[1] for name in tensors if "blocks." in name}))
    for i in blocks:
        block = f"Transformer/encoderblock_{i}"
        modules |= {f"blocks.{i}.norm1": f"{block}/LayerNorm_0"}
        modules |= {f"blocks.{i}.norm2": f"{block}/LayerNorm_2"}
        for j in (0, 1):
            modules[f"blocks.{i}.mlp.fc{j + 1}"] = f"{block}/MlpBlock_3/Dense_{j}"
    for ours, theirs in modules.items():
        weight = tensors[f"{ours}.weight"]
        scale = "norm" in ours.rpartition(".")[2]
        axes = (2, 3, 1, 0) if weight.ndim == 4 else (1, 0)
        found[f"{theirs}/{'scale' if scale else 'kernel'}"] = (
            weight if scale else weight.transpose(axes)
        )
        found[f"{theirs}/bias"] = tensors[f"{ours}.bias"]
    heads, width = (3, 64), 192
    for i in blocks:
        attention = f"Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1"
        stacked = (
            np.split(tensors[f"blocks.{i}.attn.qkv.{leaf}"], 3)
            for leaf in ("weight", "bias")
        )
        names = ("query", "key", "value")
        for name, weight, bias in zip(names, *stacked, strict=True):
            found[f"{attention}/{name}/kernel"] = weight.T.reshape(width, *heads)
            found[f"{attention}/{name}/bias"] = bias.reshape(heads)
        out = tensors[f"blocks.{i}.attn.proj.weight"].T.reshape(*heads, width)
        found[f"{attention}/out/kernel"] = out
        found[f"{attention}/out/bias"] = tensors[f"blocks.{i}.attn.proj.bias"]
    return found


def test_a_given_name_means_its_function_and_a_layout_where_there_is_none(
    tmp_path, vit
):
    """Google's GELU is by tanh; timm's weights of that name have the exact one."""
    np.savez(tmp_path / "w.npz", **google(vit[1]))
    model, variables = tiny.pair(imagepiece_jax.load(tmp_path / "w.npz", name=VIT))
    timms = of_timm(tmp_path / "timm", vit[1])
    assert model == vit[0] == imagepiece_jax.load(timms).model
    assert same(variables, imagepiece_jax.load(timms).variables)
    # A size says nothing of the weights.
    sized = imagepiece_jax.load(tmp_path / "w.npz", name="deit_ti").model
    assert (sized.arch.gelu, sized.arch.resize, sized.mean) == ("tanh", "linear", HALF)
    (tmp_path / "w.npz").rename(tmp_path / f"{VIT}.npz")
    found = imagepiece_jax.load(tmp_path / f"{VIT}.npz").model
    assert found.arch.gelu == "tanh"
    with pytest.raises(InputError, match="num_heads is 6, but weights file .* has 3"):
        imagepiece_jax.load(tmp_path / f"{VIT}.npz", num_heads=6)


def test_a_config_keeps_its_own_way_to_resize(tmp_path, model, variables):
    """What it leaves open is as the weights have it."""
    known = Preprocessing(tiny.SIDE, 0.9, "squash", "bicubic")
    vit = Pretrained(model, variables, preprocessing=known)
    imagepiece_jax.save(tmp_path / "a", vit)
    config, _ = read_with_config(tmp_path / "a", base.get_config(), Overrides())
    config.data.eval_crop, config.data.eval_crop_mode = None, "center"
    config.data.eval_interpolation = "bilinear"
    made = RunConfig.from_config(
        read_with_config(tmp_path / "a", config)[0]
    ).preprocessing()
    assert (made.crop, made.crop_mode) == (0.9, "squash")
    assert made.interpolation == "bilinear"
