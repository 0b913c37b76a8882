"""Initial weights: fresh, from a file, from a run, and partly fresh."""

import functools
import importlib

import chex
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import fresh_variables
from imagepiece_jax.training.cluster.run_dir import record_start
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.initial_weights import InitialWeights
from imagepiece_jax.training.teacher import create_teacher
from imagepiece_jax.weights.save import save
from tests.helpers import made_up_recoveries, small_runs
from tests.helpers.refused_calls import refused

TINY = {"model.depth": 1, "model.embed_dim": 8, "model.num_heads": 2}
TINY |= {"model.stem": "patch", "reduction": "none"}
configured = functools.partial(small_runs.configured, TINY)


def drawn(config, seed=0):
    return small_runs.untrained(model_of(config), seed)


def model_of(config):
    return RunConfig.from_config(config).create_model()


def initial(config, workdir="no_such_run"):
    run = RunConfig.from_config(config)
    return InitialWeights(run, workdir)


def started(config):
    return initial(config).start_variables(model_of(config))


def taught(config):
    run = RunConfig.from_config(config)
    _, variables = create_teacher(run, run.create_dense(), initial(config))
    return variables


def write(path, config):
    """The weights of seed 1 of a config's model, which are saved in a folder."""
    variables = drawn(config, seed=1)
    save(Pretrained(model_of(config), variables), path)
    return variables


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of weights of seed 1, and they themselves."""
    path = tmp_path_factory.mktemp("weights") / "one"
    return path, write(path, configured())


def test_a_run_starts_from_its_weights(saved):
    path, variables = saved
    config = configured(**{"init.weights": str(path)})
    chex.assert_trees_all_equal(started(config), variables)


LEARNED = {"reduction": "dynamicvit:blocks=(0,):keep_rate=0.5"}


def test_a_teacher_has_its_weights_which_must_fit(saved):
    path, variables = saved
    fields = LEARNED | {"teacher.weights": str(path)}
    chex.assert_trees_all_equal(taught(configured(fields)), variables)
    with refused("config.teacher.weights", "depth 1 and"):
        taught(configured(fields, **{"model.embed_dim": 16}))


TOME = "tome:r=2"


reducing = functools.partial(configured, {"model.depth": 2, "reduction": TOME})


@pytest.fixture(scope="module")
def recovered(tmp_path_factory):
    vit = Pretrained(model_of(reducing()), drawn(reducing()))
    folder = tmp_path_factory.mktemp("recovered") / "m"
    return save(made_up_recoveries.recovered(vit, reductions=(TOME,)), folder)


def scales(variables):
    return variables["params"]["blocks_1"]["norm1"]["scale"]


def test_a_run_starts_with_what_was_recovered_for_its_form(recovered):
    weights = {"init.weights": str(recovered)}
    vit = imagepiece_jax.load(recovered)
    dense = scales(imagepiece_jax.load(recovered, reduction="none").variables)
    assert np.any(dense != scales(vit.variables))
    own = reducing(**weights)
    assert np.all(scales(started(own)) == scales(vit.variables))
    assert np.all(scales(started(reducing(image_size=32, **weights))) == dense)
    found = initial(own).start_variables(RunConfig.from_config(own).create_dense())
    assert np.all(scales(found) == dense)


def test_a_recovered_folder_teaches_by_its_dense_model(recovered):
    fields = {"distill.kind": "soft", "teacher.weights": str(recovered)}
    dense = imagepiece_jax.load(recovered, reduction="none")
    chex.assert_trees_all_equal(taught(reducing(**fields)), dense.variables)


def test_only_the_named_parts_are_new(saved):
    """Another number of classes: the head is drawn from the run's own seed."""
    path, variables = saved
    fields = {"num_classes": 3, "seed": 5, "init.weights": str(path)}
    config = configured(fields, **{"init.fresh": ("head",)})
    own = fresh_variables(model_of(config), 5)
    head = {"head": own["params"]["head"]}
    chex.assert_trees_all_equal(started(config)["params"], variables["params"] | head)


def test_without_weights_no_part_is_named_as_new():
    """Else all would be drawn, and in DTEM nearly all of it would stay so."""
    with refused("config.init.fresh is ('head',), but config.init.weights is empty"):
        started(configured(**{"init.fresh": ("head",)}))


@pytest.mark.parametrize("name", ["deit_ti_finetune_small", "deit_s_evit_finetune"])
def test_a_config_for_trained_weights_needs_them(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    with refused("--config.init.weights=FILE"):
        started(configured(**{"init.weights": config.init.weights}))


HALF = (0.5, 0.5, 0.5)
OWN = {"model.arch.gelu": "tanh", "model.arch.norm_eps": 1e-6}
OWN |= {"model.mean": HALF, "model.std": HALF}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "w"
    write(path, configured(OWN))
    return path


@pytest.mark.parametrize(
    "start, field, other, trained",
    [
        ("init.weights", "arch.gelu", "exact", "tanh"),
        ("init.weights", "num_heads", 4, 2),
        ("teacher.weights", "mean", (0.4,) * 3, HALF),
    ],
)
def test_a_start_computes_what_its_weights_were_trained_for(
    own, start, field, other, trained
):
    """No tensor tells these: another value would only be seen in the accuracy."""
    begin = started
    config = configured(OWN, **{start: str(own)})
    if start == "teacher.weights":
        begin = taught
        config.update_from_flattened_dict(LEARNED)
    begin(config)
    config.update_from_flattened_dict({f"model.{field}": other})
    said = f"config.model.{field} is {other!r}, but "
    with refused(said, f"w was trained with {trained!r}"):
        begin(config)


LARGER = {"image_size": 48, "data.resize": "deit"}  # which is cropped


def test_a_run_has_the_images_of_its_weights(tmp_path):
    """A new one those of its start, and a resumed one its own, whatever they are now.

    The start, which may be gone by then, is not asked for.
    """
    path = tmp_path / "w"
    write(path, configured(OWN, LARGER, **{"data.eval_crop": 0.9}))
    config = configured(LARGER, **{"init.weights": str(path)})
    run = initial(config).complete_config()
    assert (run.vit_config.mean, run.vit_config.std) == (HALF, HALF)
    assert run.data.eval_crop == run.vit_config.preprocessing.crop == 0.9
    workdir = tmp_path / "run"
    record_start(workdir, run.to_dict())
    (workdir / "checkpoints" / "latest" / "1").mkdir(parents=True)
    path.rename(tmp_path / "gone")
    assert initial(config, workdir).complete_config() == run
    with refused("config.init.weights"):
        initial(config).complete_config()
