import contextlib
import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.data import class_names
from imagepiece_jax.evaluation.result_cache import name_use
from imagepiece_jax.models import registry, timm_tensors
from imagepiece_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.variables import draw_variables, variable_shapes
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION
from imagepiece_jax.training.cluster.checkpoint import Checkpoints
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.weights.folder_files import RUN_FORMAT
from tests.helpers import named_models, small_runs, tiny_vit
from tests.helpers.refused_calls import refused, warns_untrained

HALF = (0.5, 0.5, 0.5)
STD = (0.25, 0.5, 0.75)
NAMES = [f"class {i}" for i in range(tiny_vit.CLASSES)]
SIZE = {"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 1}
# timm's form, for a model under none of its names.
IMAGES = {"input_size": [3, tiny_vit.SIDE, tiny_vit.SIDE], "mean": HALF, "std": STD}
IMAGES |= {"tag": None, "crop_pct": 0.9, "interpolation": "bilinear"}
TIMM = {"architecture": "vit_base_patch16_224", "num_classes": tiny_vit.CLASSES}
TIMM |= {"label_names": NAMES, "model_args": {**SIZE}, "pretrained_cfg": IMAGES}
# transformers' form of the same model; epsilon and interpolation differ.
HF = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
HF |= {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
HF |= {"num_attention_heads": 1, "patch_size": 4, "image_size": tiny_vit.SIDE}
HF["id2label"] = {str(i): name for i, name in enumerate(NAMES)}
PROCESSOR = {"image_mean": HALF, "image_std": STD, "size": tiny_vit.SIDE}
SIZE |= {"image_size": tiny_vit.SIDE, "num_classes": tiny_vit.CLASSES}
CONFIG = named_models.config("vit_mini", **SIZE)
PUBLISHED = dataclasses.replace(CONFIG, mean=HALF, std=STD)
MODEL = imagepiece_jax.create_model(CONFIG)
SEVERAL = "deit3_small_patch16_224"
TAGS = f"{SEVERAL}.fb_in1k, {SEVERAL}.fb_in22k_ft_in1k"


def same(first, second):
    return jax.tree.all(jax.tree.map(np.array_equal, first, second))


@pytest.fixture(scope="module")
def variables():
    return tiny_vit.variables(MODEL)


@pytest.fixture(scope="module")
def file(tmp_path_factory, variables):
    return tiny_vit.write(tmp_path_factory.mktemp("weights") / "w.npz", variables)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, file):
    vit = imagepiece_jax.load(file, config=CONFIG)
    return imagepiece_jax.save(vit, tmp_path_factory.mktemp("saved") / "m")


def run_folder(path, **fields):
    """The folder of a run of the quickstart, without its weights."""
    pixels = {"model.mean": IMAGENET_MEAN, "model.std": IMAGENET_STD}
    config = small_runs.quickstart_config(pixels, fields)
    file_fields = {"format": RUN_FORMAT, **config.to_dict()}
    (path / "config.json").write_text(json.dumps(file_fields))
    return path


def test_a_file_needs_a_public_name_or_a_config(file, tmp_path):
    with refused(f"weights file {file} does not name its model"):
        imagepiece_jax.load(file)
    with refused(f"folder {file.parent} does not name its model"):
        imagepiece_jax.load(file.parent)
    assert imagepiece_jax.load(file.parent, config=CONFIG).model == MODEL
    (tmp_path / f"{SEVERAL}.npz").touch()
    with refused(f"'{SEVERAL}' is several different models", TAGS):
        imagepiece_jax.load(tmp_path / f"{SEVERAL}.npz")
    with refused("config is 'deit_tinny', no model name", "did you mean"):
        imagepiece_jax.load(file, config="deit_tinny")
    with refused("class_names"):
        imagepiece_jax.load(file, config=CONFIG, class_names="0123456")


def test_a_config_may_be_given_as_object_name_or_file(file, saved, variables):
    for config in (CONFIG, saved, str(saved), saved / "config.json"):
        vit = imagepiece_jax.load(file, config=config)
        assert vit.model == MODEL
        assert same(vit.variables, variables)
    with refused(f"weights file {file}", "tensor blocks.2.", "is missing"):
        imagepiece_jax.load(file, config="vit_mini")


def test_a_given_config_has_tensors_sizes(saved, file, variables, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "m")
    timm_model = {"architecture": "vit_tiny_patch16_224", "num_classes": 3}
    timm_model["pretrained_cfg"] = {"input_size": [3, 8, 8], "mean": HALF, "std": HALF}
    (folder / "config.json").write_text(json.dumps(timm_model))
    with refused(folder, "num_classes is 3", "7"):
        imagepiece_jax.load(folder)
    given = dataclasses.replace(CONFIG.at_size(2 * tiny_vit.SIDE), num_classes=9)
    for weights in (file, folder, folder / "model.safetensors"):
        vit = imagepiece_jax.load(weights, config=given)
        assert vit.model == MODEL
        assert same(vit.variables, variables)
    given = dataclasses.replace(CONFIG.with_arch(gelu="tanh"), mean=HALF)
    larger = imagepiece_jax.load(folder, config=given, image_size=32)
    assert larger.config == given.at_size(32)
    assert (larger.image_size, larger.origin.image_size) == (32, tiny_vit.SIDE)


@pytest.mark.parametrize("included, side", [(True, 12), (False, 16)])
def test_positions_with_and_without_the_prefix(tmp_path, included, side):
    """16 rows are a class token, six registers and 3 x 3 patches, or 4 x 4."""
    changes = {"image_size": side, "registers": 6, "prefix_positions": included}
    config = named_models.config("vit_mini", **SIZE | changes)
    model = create_model(config)
    path = tiny_vit.write(tmp_path / "w.npz", tiny_vit.variables(model))
    assert timm_tensors.timm_shapes(variable_shapes(model))["pos_embed"] == (1, 16, 64)
    assert imagepiece_jax.load(path, config=config.at_size(32)).config == config


def test_a_folders_damaged_config_is_named(tmp_path):
    (tmp_path / "model.safetensors").touch()
    contents = {b"\xff": "not JSON"}
    contents[b'{"peft_type": "LORA"}'] = "describes no run and no model"
    for content, problem in contents.items():
        (tmp_path / "config.json").write_bytes(content)
        with refused(tmp_path, "config.json", problem):
            imagepiece_jax.load(tmp_path)
    run = run_folder(tmp_path, **{"model.num_heads": 0})
    with refused(f"{run / 'config.json'}: ", "num_heads"):
        imagepiece_jax.load(run)


def test_a_named_config_file_is_read(saved, tmp_path):
    shutil.copy(saved / "config.json", tmp_path)
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "w.npz").touch()
    assert imagepiece_jax.read_config(tmp_path / "config.json") == CONFIG
    for name, named in (("open_clip_config.json", ""), ("w.npz", "has a config.json")):
        with refused(name, named):
            imagepiece_jax.read_config(tmp_path / name)


def save_run(folder, **fields):
    """Write a run with random weights, and return its model and variables."""
    config = json.loads((run_folder(folder, **fields) / "config.json").read_text())
    model = RunConfig.from_config(config).create_model()
    variables = tiny_vit.variables(model)
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(1, variables, {}, "best")
    return model.with_execution(drop_path_rate=0.0), variables


def test_a_run_loads_with_and_without_its_selectors(tmp_path):
    fields = {"model.stem": "conv", "model.mean": HALF, "model.std": HALF}
    fields |= {"reduction": "token_learner:num_tokens=8:block=1", "seed": 7}
    with refused("checkpoint"):
        imagepiece_jax.load(run_folder(tmp_path, **fields))
    model, variables = save_run(tmp_path, **fields)
    vit = imagepiece_jax.load(tmp_path).with_default_execution()
    assert (vit.origin.seed, vit.origin.title) == (7, f"run {tmp_path}")
    assert vit.model == model
    assert same(vit.variables, variables)
    assert set(variables) == {"params", "batch_stats"}
    learned = {name for name in variables["params"] if "reducer" in name}
    dense = imagepiece_jax.load(tmp_path, reduction="none")
    assert not (vit.untrained_kinds or dense.untrained_kinds)
    assert {*variables["params"]} - {*dense.variables["params"]} == learned
    with refused("checkpoints/latest holds no"):
        imagepiece_jax.load(tmp_path, checkpoint="latest")


@pytest.mark.parametrize(
    "file, name",
    [
        ("deit_small_patch16_224-cd65a155.pth", "deit_small_patch16_224.fb_in1k"),
        ("deit_3_small_384_21k.pth", "deit3_small_patch16_384.fb_in22k_ft_in1k"),
        ("deit_tiny_patch16_224.pth.tar", "deit_tiny_patch16_224"),
        ("deit_ti.npz", "deit_ti"),
        ("dinov2_vits14_linear_head.pth", None),
        ("vit_small_patch16_224-15ec54c9.pth", None),  # has another depth
    ],
)
def test_a_files_name_may_be_its_models(tmp_path, file, name):
    assert registry.model_in_file_name(tmp_path / file) == name
    if name:
        (tmp_path / file).touch()  # no tensor is read
        assert imagepiece_jax.read_config(tmp_path / file).name == name


def test_a_state_dict_in_memory_loads_like_its_file(variables):
    """By timm's names, alone or under a key. The caller's arrays are copied."""
    tensors = {k: np.array(v) for k, v in timm_tensors.to_timm(variables).items()}
    two_models = {"model": tensors, "ema": tensors, "epoch": 3}
    for weights, fields in ((tensors, {}), (two_models, {"checkpoint": "ema"})):
        loaded = imagepiece_jax.load(weights, "tome:r=2", config=CONFIG, **fields)
        chex.assert_trees_all_equal(loaded.variables, variables)
        assert str(loaded.reduction) == "tome:r=2"
    tensors["head.bias"][:] = 7  # the caller's array stays writable
    assert same(loaded.variables, variables)
    with refused("config is missing"):
        imagepiece_jax.load(tensors)
    with refused("blocks.0.x"):
        extended = tensors | {"blocks.0.x": tensors["head.bias"]}
        imagepiece_jax.load(extended, config=CONFIG)
    with refused("checkpoint is None; it must be"):
        imagepiece_jax.load(two_models, config=CONFIG)


def test_a_run_loads_its_trained_reduction(tmp_path):
    given = small_runs.quickstart_config().reduction
    save_run(tmp_path)
    vit = imagepiece_jax.load(tmp_path)
    assert name_use(vit, given) == "as trained"
    for other in (f"{given}:keep_rate=0.5", DENSE_REDUCTION):
        assert name_use(vit, other) == "off-the-shelf"
    run_folder(tmp_path, reduction="imagepiece:prop_attn=True")
    weighted = imagepiece_jax.load(tmp_path)
    assert weighted.model.prop_attn is True
    assert name_use(weighted, given) == "off-the-shelf"


def write_folder(path, file, **files):
    """A published folder: weights and JSON files."""
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    shutil.copy(file, path)
    return path


def test_timms_folder_loads_its_config(tmp_path, file, variables):
    path = write_folder(tmp_path, file, config=TIMM)
    vit = imagepiece_jax.load(path)
    named = dataclasses.replace(PUBLISHED, name=TIMM["architecture"])
    assert vit.config == named.with_preprocessing(crop=0.9, interpolation="bilinear")
    assert same(vit.variables, variables)
    assert vit.class_names == tuple(NAMES)
    larger, values = tiny_vit.pair(imagepiece_jax.load(path, image_size=24))
    assert larger.config.image_size == 24
    assert values["params"]["pos_embed"].shape == (1, 1 + 36, 64)
    (path / "pytorch_model.bin").touch()  # preferred
    with refused(f"{path / 'pytorch_model.bin'}: it is damaged"):
        imagepiece_jax.load(path)


def test_transformers_folder_loads_its_config(tmp_path, file):
    path = write_folder(tmp_path, file, config=HF, preprocessor_config=PROCESSOR)
    vit = imagepiece_jax.load(path)
    assert vit.class_names == tuple(NAMES)
    images = vit.preprocessing
    assert (images.crop_mode, images.interpolation) == ("squash", "bilinear")
    expected = PUBLISHED.with_arch(norm_eps=1e-12, resize="bicubic")
    assert vit.config == dataclasses.replace(expected, name=None, preprocessing=images)


def test_only_a_public_classifiers_classes_have_names():
    deit = "deit_tiny_patch16_224"
    in21k = "vit_small_patch16_224.augreg_in21k"
    find_names = registry.published_class_names
    assert find_names(deit, 1000) == class_names.imagenet_names()
    for name, classes in ((in21k, 1000), (f"{deit}.fb_in1k", 10), (None, 1000)):
        assert find_names(name, classes) is None


def test_a_new_head_is_drawn_like_in_training(tmp_path, file, variables):
    path = write_folder(tmp_path, file, config=TIMM)
    with warns_untrained():
        fresh = imagepiece_jax.load(path, num_classes=3, seed=5)
    assert (fresh.model.config.num_classes, fresh.class_names) == (3, None)
    head = draw_variables(fresh.model, 5)["params"]["head"]
    assert same(fresh.variables["params"], variables["params"] | {"head": head})
    with warns_untrained():
        named = imagepiece_jax.load(path, num_classes=3, class_names=["a", "b", "c"])
    assert named.class_names == ("a", "b", "c")
    assert "head" not in imagepiece_jax.load(path, num_classes=0).variables["params"]
    same_classes = imagepiece_jax.load(path, num_classes=tiny_vit.CLASSES)
    assert same_classes.class_names == tuple(NAMES)
    assert same(same_classes.variables, variables)
