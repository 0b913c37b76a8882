import functools

import chex
import numpy as np
import pytest

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


def test_a_teachers_weights_must_fit(saved_weights):
    path, variables = saved_weights
    fields = {"reduction": "dynamicvit:blocks=(0,):keep_rate=0.5"}
    fields["teacher.weights"] = str(path)
    chex.assert_trees_all_equal(teacher_variables(tiny_config(fields)), variables)
    with refused("config.", "needs (48,)"):
        teacher_variables(tiny_config(fields, **{"model.embed_dim": 16}))
    with refused("config.", "was trained with 'exact'"):
        teacher_variables(tiny_config(fields, **{"model.arch.gelu": "tanh"}))


TOME = "tome:r=2"
reducing_config = functools.partial(tiny_config, {"model.depth": 2, "reduction": TOME})


def test_a_run_starts_from_values_recovered_for_its_reduction(tmp_path):
    """For another size or reduction it starts from the dense values."""
    model = config_model(reducing_config())
    dense = small_runs.draw_untrained(model, seed=0)
    vit = made_up_recoveries.recovered(Pretrained(model, dense), reductions=(TOME,))
    save(vit, tmp_path / "m")

    def norm_scales(variables):
        return variables["params"]["blocks_1"]["norm1"]["scale"]

    for fields, expected in (
        ({}, vit.variables),
        ({"image_size": 32}, dense),
        ({"reduction": "none"}, dense),
    ):
        config = reducing_config(fields, **{"init.weights": f"{tmp_path}/m"})
        scales = norm_scales(start_variables(config))
        np.testing.assert_array_equal(scales, norm_scales(expected))
    assert np.any(norm_scales(dense) != norm_scales(vit.variables))
    fields = {"distill.kind": "soft", "teacher.weights": f"{tmp_path}/m"}
    chex.assert_trees_all_equal(teacher_variables(reducing_config(**fields)), dense)


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
OWN = {"model.arch.gelu": "tanh", "model.mean": HALF, "model.std": HALF}


def test_a_config_cannot_change_its_weights_computation(tmp_path):
    """No tensor shows these fields. A wrong value would only lower the accuracy."""
    save_weights(tmp_path / "w", tiny_config(OWN))
    config = functools.partial(tiny_config, OWN, {"init.weights": f"{tmp_path}/w"})
    start_variables(config())
    for field, value, trained in (
        ("arch.gelu", "exact", "tanh"),
        ("num_heads", 4, 2),
        ("std", (0.4,) * 3, HALF),
    ):
        message = f"config.model.{field} is {value!r}, but "
        with refused(message, f"w was trained with {trained!r}"):
            start_variables(config(**{f"model.{field}": value}))


LARGER = {"image_size": 48, "data.resize": "deit"}  # cropped


def test_a_run_takes_the_image_fields_of_its_weights(tmp_path):
    """A resumed run keeps its own, and does not need its start's weights."""
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
