"""Models of weights files and runs, and changes that contradict them."""

import json
import re

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry, timm_tensors
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.spec import ModelSpec, create_model
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.models.vit import MEAN, STD
from imagepiece_jax.training.cluster.checkpoint import Checkpoints
from imagepiece_jax.weights import load
from imagepiece_jax.weights.file_names import RUN_FORMAT
from imagepiece_jax.weights.load import SavedWeights, load_as
from tests import runs
from tests.models import tiny
from tests.models.test_published import same
from tests.refused import refused

HALF = (0.5, 0.5, 0.5)
NORMALIZATION = {"mean": HALF, "std": (0.25, 0.5, 0.75)}
SIZE = {"embed_dim": 64, "num_heads": 1, "depth": 2}
OF = {"name": "vit_mini", "num_heads": 1}  # what its tensors do not tell


@pytest.fixture(scope="module")
def tensors():
    return timm_tensors.to_timm(tiny.variables(tiny.model(**SIZE)))


@pytest.fixture
def file(tmp_path, tensors):
    """A weights file of no model's name."""
    path = tmp_path / "w.npz"
    np.savez(path, **tensors)
    return path


def run_folder(path, **fields):
    """The folder of a run of the quickstart, without its weights."""
    path.mkdir(exist_ok=True)
    config = runs.configured({"model.mean": MEAN, "model.std": STD}, fields)
    fields = {"format": RUN_FORMAT, **config.to_dict()}
    (path / "config.json").write_text(json.dumps(fields))
    return path


def test_a_run_has_its_normalization_and_the_sizes_of_its_name(tmp_path):
    run = run_folder(tmp_path / "run", **{"model.mean": HALF, "model.std": HALF})
    found = SavedWeights(run).source.spec
    assert (found.mean, found.std) == (HALF, HALF)
    assert found.num_heads == 4  # of vit_mini, which its config only names


@pytest.mark.parametrize(
    "field, value, own",
    [
        ("embed_dim", 128, "64"),
        ("depth", 3, "2"),
        ("num_classes", 10, "7"),
        ("patch_size", 2, "4"),
        ("stem", "conv", "'patch'"),
        ("mlp_ratio", 3.0, "4.0"),
    ],
)
def test_a_field_that_contradicts_the_weights_is_named(file, field, value, own):
    said = f"^{field}.* is {value!r}, but weights file {file} has {own}$"
    with pytest.raises(InputError, match=said):
        load_as(SavedWeights(file), ModelSpec.from_fields(OF | {field: value}))


@pytest.mark.parametrize("arch", [{}, {"pool": "token"}])
def test_what_a_dict_of_parts_does_not_say_is_as_in_deit(file, arch):
    fields = {"num_heads": 1, **NORMALIZATION}
    assert load.load(file, **fields, arch=arch).model.arch == Architecture()
    with pytest.raises(InputError, match=r" rotary=\.\. \(False: none\) ") as error:
        load.load(file, **fields)
    given = {"norm_eps": 1e-6, "gelu": "exact", "resize": "antialias"}
    given |= {"rotary": False, "post_norm": False, "pool": "token"}
    assert all(f"{name}=.." in str(error.value) for name in given)
    assert load.load(file, **fields, **given).model.arch == Architecture()


def test_fields_that_may_differ_do(file):
    changes = {"image_size": 32, "gelu": "tanh", "mean": (0.0, 0.0, 0.0), "std": HALF}
    vit = load.load(file, **OF | changes)
    assert (vit.image_size, vit.source.spec.image_size) == (32, tiny.SIDE)
    assert vit.model.arch.gelu == "tanh"
    assert vit.spec.name == "vit_mini"
    assert (vit.model.mean, vit.model.std) == ((0.0, 0.0, 0.0), HALF)


@pytest.mark.parametrize(
    "field, value",
    [
        ("model.mean", (0.5, 0.5, 2.0)),
        ("model.num_heads", 0),
        ("reduction", "imagepiece:keep_rate=2.0"),
        ("data.eval_crop", 3.0),
        ("num_classes", -1),
        ("image_size", -8),
    ],
)
def test_a_wrong_field_of_a_run_is_one_of_its_config(tmp_path, field, value):
    run = run_folder(tmp_path / "run", **{field: value})
    _, _, name = field.replace("eval_", "").rpartition(".")
    with refused(name, f"{run / 'config.json'}: "):
        imagepiece_jax.load(run)


def test_a_run_without_a_checkpoint(tmp_path):
    run = run_folder(tmp_path / "run")
    with pytest.raises(InputError, match="checkpoint"):
        load.load(run)


@pytest.mark.parametrize(
    "field, value, problem",
    [
        ("image_size", 32, "tensor pos_embed has shape"),
        ("model.depth", 7, "a model of depth 2"),
        ("model.embed_dim", 32, "a model of depth 2 and width 16"),
        ("model.mlp_ratio", 2.0, r"tensor blocks.0.mlp.fc1.\w+ has shape"),
    ],
)
def test_a_config_that_is_not_of_the_checkpoint(tmp_path, field, value, problem):
    model = RunConfig.from_config(runs.configured(runs.DENSE)).create_model()
    variables = tiny.fill(variable_shapes(model, 16))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, variables, {})  # before the first best
    run_folder(tmp_path, **runs.DENSE)
    load_as(SavedWeights(tmp_path, "latest"))
    run_folder(tmp_path, **runs.DENSE | {field: value})
    with pytest.raises(InputError, match=f"{tmp_path}.* {problem}"):
        load_as(SavedWeights(tmp_path, "latest"))


NEITHER = "config.json is neither that of a run nor of published weights"


@pytest.mark.parametrize(
    "file, content, problem",
    [
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"\xff", "config.json is not JSON"),
        ("config.json", b"[]", "config.json holds a list"),
        ("config.json", b'{"model": {}}', NEITHER),
        ("config.json", b"{}", NEITHER),
        ("config.json", b'{"peft_type": "LORA"}', NEITHER),
    ],
)
def test_a_folder_without_a_config(tmp_path, file, content, problem):
    """Weights beside a broken config are no matter."""
    (tmp_path / file).write_bytes(content)
    if "config" in file:
        (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=f"{tmp_path}/?{problem}"):
        load.load(tmp_path)


def test_a_file_has_no_latest_checkpoint(file):
    with pytest.raises(InputError, match="'latest', but .*w.npz is no run"):
        imagepiece_jax.load(file, **OF, checkpoint="latest")


def test_a_folder_without_a_config_is_refused(file):
    with refused(f"folder {file.parent} has no config.json; config= must say"):
        imagepiece_jax.load(file.parent)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("image_size", None, "image_size is None"),
        ("num_classes", "7", "num_classes is '7'"),
        ("model.mean", "abc", "mean"),
        ("model.drop_path_rate", "x", "drop_path_rate"),
    ],
)
def test_a_run_whose_config_was_damaged(tmp_path, field, value, message):
    run = run_folder(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    *group, name = field.split(".")
    (config[group[0]] if group else config)[name] = value
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=re.escape(message)):
        imagepiece_jax.load(run)


def test_a_run_loads_with_its_selectors_or_without(tmp_path):
    """Its best checkpoint alone is there."""
    fields = {"seed": 7, "model.stem": "conv", "model.mean": MEAN, "model.std": STD}
    config = runs.configured(runs.DENSE, fields)
    config.reduction = "token_learner:num_tokens=8:block=1"
    run = RunConfig.from_config(config)
    (tmp_path / "config.json").write_text(json.dumps(run.to_dict()))
    model = run.create_model()
    variables = tiny.fill(variable_shapes(model, 16))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, variables, {}, "best")
    vit = load.load(tmp_path)
    assert vit.source.seed == 7
    assert str(vit.source) == f"run {tmp_path}"
    assert vit.model == model
    assert same(vit.variables, variables)
    assert set(variables) == {"params", "batch_stats"}
    assert not vit.untrained
    learned = {name for name in variables["params"] if "reducer" in name}
    dense = load.load(tmp_path, reduction="none")
    for other in (dense, vit.with_reduction(None)):
        assert not other.untrained
        assert model.plan != other.model.plan
        assert {*variables["params"]} - {*other.variables["params"]} == learned
    # An analysis takes the last checkpoint.
    message = "run .* has no 'latest' checkpoint yet, but 'best'"
    with pytest.raises(InputError, match=message):
        load.load(tmp_path, checkpoint="latest")


@pytest.mark.parametrize(
    "file, name",
    [
        ("deit_small_patch16_224-cd65a155", "deit_small_patch16_224.fb_in1k"),
        ("deit_3_small_384_21k", "deit3_small_patch16_384.fb_in22k_ft_in1k"),
        ("dino_deitsmall8_pretrain", "vit_small_patch8_224.dino"),
        ("dinov2_vits14_reg4_pretrain", "vit_small_patch14_reg4_dinov2.lvd142m"),
        ("mae_pretrain_vit_huge", "vit_huge_patch14_224.mae"),
        ("deit_tiny_patch16_224", "deit_tiny_patch16_224"),
        ("ViT-B_16", None),  # of ImageNet-21k, and of SAM
        ("dinov2_vits14_linear_head", None),
        ("mae_finetuned_vit_base", None),
        ("vit_small_patch16_224-15ec54c9", None),  # of another depth
    ],
)
def test_the_authors_names_of_files(file, name):
    assert registry.name_of_file(f"folder/{file}.pth") == name


def test_a_file_by_its_authors_name_loads(tmp_path):
    model = create_model("vit_small_patch16_224.dino")
    shapes = timm_tensors.timm_shapes(tiny.shapes(model, 224))
    path = tmp_path / "dino_deitsmall16_pretrain.npz"
    np.savez(path, **{k: np.zeros(shape, np.float32) for k, shape in shapes.items()})
    assert imagepiece_jax.load(path).model == model
    assert imagepiece_jax.load(path).source.normalized
    path.rename(tmp_path / "tuned.npz")
    with pytest.raises(InputError, match=r"name=.. \(deit_s, vit_small"):
        imagepiece_jax.load(tmp_path / "tuned.npz")


def test_the_name_of_another_model_is_no_name_of_a_run(tmp_path):
    """Its sizes are compared; a run's own name may be beside sizes of its own."""
    run = run_folder(tmp_path / "run", **{"model.embed_dim": 32})
    with pytest.raises(InputError, match="embed_dim of 'deit_ti' is 192, but run"):
        imagepiece_jax.load(run, name="deit_ti")
    with pytest.raises(InputError, match="checkpoint"):  # which this folder lacks
        imagepiece_jax.load(run, name="vit_mini")
