"""The public API, from weights on disk to a model: load."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.deploy.inference import predictor as api
from tests.command import start
from tests.models import tiny
from tests.refused import refused
from tests.runs import ROOT

GIVEN = {"config": tiny.model(depth=1).config}


def test_the_package_imports_nothing_until_it_is_used():
    code = (
        "import sys, imagepiece_jax as i; assert 'jax' not in sys.modules; "
        "assert set(i.__all__) <= set(dir(i)); i.create_model; print('jax' in "
        "sys.modules, 'orbax' in sys.modules, 'ml_collections' in sys.modules); "
        "i.create_model('deit_ti', reduction='tome'); of = i.__name__ + "
        "'.reduction.methods.'; print(of + 'tome' in sys.modules, of + 'atc' in "
        "sys.modules)"
    )
    ended = start("-c", code, PYTHONPATH=str(ROOT))
    assert (ended.out, ended.err) == ("True False False\nTrue False\n", "")
    assert imagepiece_jax.Predictor is api.Predictor
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = imagepiece_jax.lode


def test_load_makes_the_model_of_a_config(trained, weights_file):
    model, variables = tiny.pair(imagepiece_jax.load(weights_file, **GIVEN))
    assert model == trained.model
    chex.assert_trees_all_equal(variables, trained.variables)
    changes = {"image_size": 32, "dtype": jnp.bfloat16}
    config = tiny.model(depth=1, gelu="tanh").config
    vit = imagepiece_jax.load(weights_file, "tome:r=4", config=config, **changes)
    model, variables = tiny.pair(vit)
    assert model.execution.dtype == jnp.bfloat16
    assert [model.plan[0].attn_tokens, model.plan[0].mlp_tokens] == [65, 61]
    assert variables["params"]["pos_embed"].shape == (1, 65, tiny.WIDTH)
    assert model.config.arch.gelu == "tanh"


@pytest.mark.parametrize(
    "tensor, found",
    [
        ("pos_embed", None),
        ("pos_embed", np.zeros(3)),
        ("pos_embed", np.zeros((1, 24, 30))),
        ("extra", np.zeros(3)),
        ("head.bias", np.zeros(6)),
    ],
)
def test_weights_of_other_models(weights_file, tmp_path, tensor, found):
    path = tmp_path / "w.npz"
    tensors = dict(np.load(weights_file))
    tensors[tensor] = found
    if found is None:
        del tensors[tensor]
    np.savez(path, **tensors)
    with refused(f"tensor {tensor}", f"weights file {path}: "):
        imagepiece_jax.load(path, **GIVEN)


def test_a_file_without_a_public_name_needs_a_config(weights_file):
    with refused("config=", str(weights_file), "nor the name of a public model"):
        imagepiece_jax.load(weights_file)


@pytest.mark.parametrize(
    "options, field",
    [
        ({"image_size": (20, 22)}, "image_size"),
        ({"reduction": 3}, "reduction"),
        ({"class_names": ["a"]}, "class_names"),
        ({"num_classes": "x"}, "num_classes"),
        ({"dtype": jnp.int32}, "dtype"),
        ({"config": "deit_s"}, "width"),
    ],
)
def test_fields_that_load_refuses(weights_file, options, field):
    with refused(field):
        imagepiece_jax.load(weights_file, **(GIVEN | options))


def test_an_unknown_argument_is_pythons_to_refuse(weights_file):
    with pytest.raises(TypeError, match="depht"):
        imagepiece_jax.load(weights_file, **GIVEN, depht=2)
