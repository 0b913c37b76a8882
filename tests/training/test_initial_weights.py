import functools

import chex
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import draw_variables
from imagepiece_jax.training.cluster.run_dir import record_start
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.initial_weights import InitialWeights
from imagepiece_jax.training.teacher import create_teacher
from imagepiece_jax.weights.save import save
from tests.helpers import made_up_recoveries, small_runs
from tests.helpers.refused_calls import refused

TINY = {"model.depth": 1, "model.embed_dim": 8, "model.num_heads": 2}
TINY |= {"model.stem": "patch", "reduction": "none"}
tiny_config = functools.partial(small_runs.quickstart_config, TINY)


def config_model(config):
    return RunConfig.from_config(config).create_model()


def initial_weights(config, workdir="no_such_run"):
    return InitialWeights(RunConfig.from_config(config), workdir)


def start_variables(config):
    return initial_weights(config).make_initial_variables(config_model(config))


def teacher_variables(config):
    run = RunConfig.from_config(config)
    dense_model = run.create_dense_model()
    return create_teacher(run, dense_model, initial_weights(config))[1]


def save_weights(path, config):
    """Save a config's weights of seed 1 in a folder, and return them."""
    variables = small_runs.draw_untrained(config_model(config), seed=1)
    save(Pretrained(config_model(config), variables), path)
    return variables


@pytest.fixture(scope="module")
def saved_weights(tmp_path_factory):
    """A folder of weights of seed 1, and the weights."""
    path = tmp_path_factory.mktemp("weights") / "one"
    return path, save_weights(path, tiny_config())


LEARNED = {"reduction": "dynamicvit:blocks=(0,):keep_rate=0.5"}


def test_a_teachers_weights_must_fit(saved_weights):
    path, variables = saved_weights
    fields = LEARNED | {"teacher.weights": str(path)}
    chex.assert_trees_all_equal(teacher_variables(tiny_config(fields)), variables)
    with refused("config.teacher.weights", "needs (48,)"):
        teacher_variables(tiny_config(fields, **{"model.embed_dim": 16}))


TOME = "tome:r=2"
reducing_config = functools.partial(tiny_config, {"model.depth": 2, "reduction": TOME})


@pytest.fixture(scope="module")
def recovered_folder(tmp_path_factory):
    model = config_model(reducing_config())
    vit = Pretrained(model, small_runs.draw_untrained(model, seed=0))
    folder = tmp_path_factory.mktemp("recovered") / "m"
    return save(made_up_recoveries.recovered(vit, reductions=(TOME,)), folder)


def norm_scales(variables):
    return variables["params"]["blocks_1"]["norm1"]["scale"]


def test_a_run_starts_from_values_recovered_for_its_reduction(recovered_folder):
    """For another size or reduction it starts from the dense values."""
    weights = {"init.weights": str(recovered_folder)}
    recovered = norm_scales(imagepiece_jax.load(recovered_folder).variables)
    dense_vit = imagepiece_jax.load(recovered_folder, reduction="none")
    dense = norm_scales(dense_vit.variables)
    assert np.any(dense != recovered)
    for fields, expected in (
        ({}, recovered),
        ({"image_size": 32}, dense),
        ({"reduction": "none"}, dense),
    ):
        scales = norm_scales(start_variables(reducing_config(weights, **fields)))
        np.testing.assert_array_equal(scales, expected)
    fields = {"distill.kind": "soft", "teacher.weights": str(recovered_folder)}
    taught = teacher_variables(reducing_config(**fields))
    chex.assert_trees_all_equal(taught, dense_vit.variables)


def test_only_the_named_parts_are_fresh(saved_weights):
    """The run's seed draws the head, here of another class count."""
    path, variables = saved_weights
    fields = {"num_classes": 3, "seed": 5, "init.weights": str(path)}
    config = tiny_config(fields, **{"init.fresh": ("head",)})
    drawn = draw_variables(config_model(config), 5)
    head = {"head": drawn["params"]["head"]}
    chex.assert_trees_all_equal(
        start_variables(config)["params"], variables["params"] | head
    )


def test_fresh_parts_need_weights():
    """Else all parts would be fresh, and DTEM would train almost none."""
    with refused("config.init.weights is empty"):
        start_variables(tiny_config(**{"init.fresh": ("head",)}))


HALF = (0.5, 0.5, 0.5)
OWN = {"model.arch.gelu": "tanh", "model.arch.norm_eps": 1e-6}
OWN |= {"model.mean": HALF, "model.std": HALF}


@pytest.fixture(scope="module")
def own_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "w"
    save_weights(path, tiny_config(OWN))
    return path


@pytest.mark.parametrize(
    "start, field, value, trained",
    [
        ("init.weights", "arch.gelu", "exact", "tanh"),
        ("init.weights", "num_heads", 4, 2),
        ("teacher.weights", "mean", (0.4,) * 3, HALF),
    ],
)
def test_a_config_cannot_change_its_weights_computation(
    own_weights, start, field, value, trained
):
    """No tensor shows these fields. A wrong value would only lower the accuracy."""
    read_start = start_variables
    config = tiny_config(OWN, **{start: str(own_weights)})
    if start == "teacher.weights":
        read_start = teacher_variables
        config.update_from_flattened_dict(LEARNED)
    read_start(config)
    config.update_from_flattened_dict({f"model.{field}": value})
    message = f"config.model.{field} is {value!r}, but "
    with refused(message, f"w was trained with {trained!r}"):
        read_start(config)


LARGER = {"image_size": 48, "data.resize": "deit"}  # cropped


def test_a_run_takes_the_image_fields_of_its_weights(tmp_path):
    """A new run takes its start's image fields; a resumed run keeps its own.

    A resumed run does not need its start's weights.
    """
    path = tmp_path / "w"
    save_weights(path, tiny_config(OWN, LARGER, **{"data.eval_crop": 0.9}))
    config = tiny_config(LARGER, **{"init.weights": str(path)})
    run = initial_weights(config).complete_config()
    assert (run.vit_config.mean, run.vit_config.std) == (HALF, HALF)
    assert run.data.eval_crop == run.vit_config.preprocessing.crop == 0.9
    workdir = tmp_path / "run"
    record_start(workdir, run.to_dict())
    (workdir / "checkpoints" / "latest" / "1").mkdir(parents=True)
    path.rename(tmp_path / "gone")
    assert initial_weights(config, workdir).complete_config() == run
    with refused("config.init.weights"):
        initial_weights(config).complete_config()
