"""Initial weights: fresh, from a file, from a run, and partly fresh."""

import functools
import re

import chex
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import timm_tensors
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import fresh_variables, variable_shapes
from imagepiece_jax.training.initial_weights import InitialWeights
from imagepiece_jax.weights import load
from imagepiece_jax.weights.save import save
from tests import runs
from tests.models import recoveries, tiny

BLOCKS = {"reduction": "imagepiece:merge_blocks=():prune_blocks=()"}
SIZE = {"model.depth": 1, "model.embed_dim": 8, "model.num_heads": 2}
configured = functools.partial(runs.configured, {"model.stem": "patch"} | SIZE | BLOCKS)


def drawn(config, seed=0):
    return fresh_variables(model_of(config), seed)


def model_of(config):
    return RunConfig.from_config(config).create_model()


def initial(config):
    return InitialWeights(RunConfig.from_config(config))


def started(config):
    """The variables that the run of a config starts from."""
    return initial(config).variables(model_of(config))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Weights of seed 1 as a file, and they themselves."""
    path = tmp_path_factory.mktemp("weights") / "one.npz"
    variables = drawn(configured(), seed=1)
    tiny.write(path, variables)
    return path, variables


def test_fresh_is_a_function_of_the_seed():
    config = configured()
    first = drawn(config)
    again = drawn(config)
    other = drawn(config, seed=1)
    chex.assert_trees_all_equal(first, again)
    kernels = (tree["params"]["head"]["kernel"] for tree in (first, other))
    assert not np.array_equal(*kernels)
    shapes = variable_shapes(model_of(config))
    chex.assert_trees_all_equal_shapes_and_dtypes(first, shapes)


def test_a_run_starts_from_its_file(saved):
    path, variables = saved
    config = configured(**{"init.weights": str(path)})
    chex.assert_trees_all_equal(started(config), variables)


def test_a_teacher_has_the_weights_of_its_file_which_must_fit(saved):
    path, variables = saved

    def read(**fields):
        config = configured({"teacher.weights": str(path)}, **fields)
        dense = RunConfig.from_config(config).create_dense()
        return initial(config).teacher_variables(dense)

    chex.assert_trees_all_equal(read(), variables)
    with pytest.raises(InputError, match="config.teacher.weights.*depth 1 and"):
        read(**{"model.embed_dim": 16})


TOME = "tome:r=2"
FOLDER = {"model.depth": 2}  # what the recovered weights have


def reducing(reduction, **fields):
    """A config with this reduction."""
    return configured(FOLDER, reduction=reduction, **fields)


@pytest.fixture(scope="module")
def recovered(tmp_path_factory):
    """The folder of weights that were recovered for TOME."""
    config = reducing(TOME)
    vit = Pretrained(model_of(config), drawn(config), Preprocessing(config.image_size))
    folder = tmp_path_factory.mktemp("recovered") / "m"
    return save(folder, recoveries.recovered(vit, costs=(TOME,)))


def scales(variables):
    return variables["params"]["blocks_1"]["norm1"]["scale"]


def test_a_run_starts_with_what_was_recovered_for_its_form(recovered):
    """And in another with the dense model's numbers."""
    weights = {"init.weights": str(recovered)}
    vit = imagepiece_jax.load(recovered)
    dense = scales(imagepiece_jax.load(recovered, reduction="none").variables)
    assert np.any(dense != scales(vit.variables))
    own = reducing(TOME, **weights)
    np.testing.assert_array_equal(scales(started(own)), scales(vit.variables))
    larger = reducing(TOME, image_size=32, **weights)
    np.testing.assert_array_equal(scales(started(larger)), dense)
    as_dense = RunConfig.from_config(own).create_dense()
    found = initial(own).variables(as_dense)
    np.testing.assert_array_equal(scales(found), dense)


def test_a_recovered_folder_teaches_by_its_dense_model(recovered):
    fields = {"distill.kind": "soft", "teacher.weights": str(recovered)}
    run = RunConfig.from_config(reducing(TOME, **fields))
    dense = imagepiece_jax.load(recovered, reduction="none")
    found = InitialWeights(run).teacher_variables(run.create_dense())
    chex.assert_trees_all_equal(found, dense.variables)


def test_only_the_named_parts_are_new(saved):
    """Another number of classes: the head is drawn from the run's own seed."""
    path, variables = saved
    fields = {"num_classes": 3, "seed": 5, "init.weights": str(path)}
    config = configured(fields, **{"init.fresh": ("head",)})
    head = {"head": drawn(config, seed=5)["params"]["head"]}
    chex.assert_trees_all_equal(started(config)["params"], variables["params"] | head)


def test_a_dense_run_starts_from_weights_with_selectors(tmp_path):
    """They are left out, as a model of `load` with another reduction leaves them."""
    path = tmp_path / "w.npz"
    config = configured(**{"model.depth": 2})
    config.reduction = "dynamicvit:blocks=(1,):keep_rate=0.5"
    variables = drawn(config, seed=1)
    tiny.write(path, variables)
    config = configured(**{"model.depth": 2, "init.weights": str(path)})
    del variables["params"]["reducer_1"]
    chex.assert_trees_all_equal(started(config), variables)


@pytest.fixture(scope="module")
def google(tmp_path_factory):
    """A file of Google's, and the fields of a config with its model."""
    path = tmp_path_factory.mktemp("google") / "w.npz"
    with np.load(runs.ROOT / "tests/fixtures/layouts/vit_jax.npz") as file:
        beside = ("images", "outputs", "config")
        np.savez(path, **{k: file[k] for k in file.files if k not in beside})
    given = {"name": "deit_s", "stem": "patch"}
    fields = load.load(path, **given).spec.as_dict
    top = {name: fields[name] for name in ("image_size", "num_classes")}
    model = {k: v for k, v in fields.items() if k not in (*top, "arch")}
    parts = {"gelu": "tanh", "norm_eps": 1e-6}
    parts = {f"model.arch.{part}": value for part, value in parts.items()}
    return path, top | {f"model.{k}": v for k, v in model.items()} | parts


@pytest.mark.parametrize("start", ["init.weights", "teacher.weights"])
@pytest.mark.parametrize(
    "field, other, trained",
    [
        ("arch.gelu", "exact", "tanh"),
        ("arch.norm_eps", 1e-5, 1e-6),
        ("num_heads", 4, 3),
        ("mean", (0.4,) * 3, (0.5,) * 3),
    ],
)
def test_a_start_computes_what_its_weights_were_trained_for(
    google, start, field, other, trained
):
    """No tensor tells these: another value would only be seen in the accuracy."""
    path, fields = google

    def begin(config):
        model = RunConfig.from_config(config).create_dense()
        if start == "teacher.weights":
            return initial(config).teacher_variables(model)
        return initial(config).variables(model)

    config = runs.configured()
    config.update_from_flattened_dict(BLOCKS | fields | {start: str(path)})
    begin(config)
    config.update_from_flattened_dict({f"model.{field}": other})
    said = f"config.model.{field} is {other!r}, but "
    with pytest.raises(InputError, match=re.escape(said)) as error:
        begin(config)
    assert f"w.npz was trained with {trained!r}" in str(error.value)


def test_numbers_are_compared_as_float32_has_them(tmp_path, google):
    """NumPy's users write float32, whose .485 is not that of a config."""
    variables = drawn(configured(), seed=1)
    mean = np.float32([0.485, 0.456, 0.406])
    std = np.float32([0.229, 0.224, 0.225])
    path = tmp_path / "w.npz"
    np.savez(path, **timm_tensors.to_timm(variables), mean=mean, std=std)
    config = configured(**{"init.weights": str(path)})
    chex.assert_trees_all_equal(started(config), variables)
    assert initial(config).start.normalization["mean"] == (0.485, 0.456, 0.406)
    # A layout says them, too: a new run takes those.
    config.init.weights = str(google[0])
    with config.unlocked():
        config.model.mean = config.model.std = None
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert initial(config).normalization("no_such_run") == half
