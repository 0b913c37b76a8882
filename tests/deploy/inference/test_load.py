"""The public API, from weights on disk to a model: load."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.deploy.inference import predictor as api
from imagepiece_jax.models.config import MEAN, STD
from tests.command import start
from tests.models import tiny
from tests.refused import refused
from tests.runs import ROOT

HEADS = {"name": "vit_mini", "num_heads": tiny.HEADS}
GIVEN = HEADS | {"mean": MEAN, "std": STD}  # what tensors leave open
LACKING = ["num_heads", "mean", "std", "norm_eps", "gelu", "resize"]
LACKING += ["rotary", "post_norm", "pool"]


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


def test_load_infers_the_model_from_its_tensors(trained, weights_file):
    model, variables = tiny.pair(imagepiece_jax.load(weights_file, **GIVEN))
    assert model == trained.model
    chex.assert_trees_all_equal(variables, trained.variables)
    changes = {"image_size": 32, "gelu": "tanh", "dtype": jnp.bfloat16}
    vit = imagepiece_jax.load(weights_file, "tome:r=4", **changes, **GIVEN)
    model, variables = tiny.pair(vit)
    assert model.execution.dtype == jnp.bfloat16
    assert [model.plan[0].attn_tokens, model.plan[0].mlp_tokens] == [65, 61]
    assert variables["params"]["pos_embed"].shape == (1, 65, tiny.WIDTH)
    assert model.config.arch.gelu == "tanh"


@pytest.mark.parametrize(
    "tensor, found, options, field, value",
    [
        ("pos_embed", None, HEADS, "tensor pos_embed", None),
        ("pos_embed", np.zeros(3), HEADS, "tensor pos_embed", (3,)),
        ("pos_embed", np.zeros((1, 24, 30)), HEADS, "tensor pos_embed", 24),
        ("extra", np.zeros(3), GIVEN, "tensor extra", None),
        ("head.bias", np.zeros(7), {}, "num_heads", LACKING),
        ("head.bias", np.zeros(7), {"name": "deit_s"}, "name", "deit_s"),
    ],
)
def test_weights_of_other_models(
    weights_file, tmp_path, tensor, found, options, field, value
):
    path = tmp_path / "w.npz"
    tensors = dict(np.load(weights_file))
    tensors[tensor] = found
    if found is None:
        del tensors[tensor]
    np.savez(path, **tensors)
    with refused(field, f"weights file {path}: "):
        imagepiece_jax.load(path, **options)


@pytest.mark.parametrize(
    "options, field, value",
    [
        ({"image_size": (20, 22)}, "image_size", (20, 22)),
        ({"reduction": 3}, "reduction", 3),
        ({"class_names": ["a"]}, "class_names", 1),
        ({"num_classes": "x"}, "num_classes", "x"),
        ({"dtype": jnp.int32}, "dtype", jnp.int32),
        ({"num_heads": 4}, "num_heads", 4),
        ({"depth": 2}, "depth", 2),
        ({"mean": (0.5, 0.5)}, "mean", (0.5, 0.5)),
        ({"mean": (123.7,) * 3}, "mean", (123.7,) * 3),
        ({"std": None}, "mean", None),
    ],
)
def test_fields_that_load_refuses(weights_file, options, field, value):
    with refused(field):
        imagepiece_jax.load(weights_file, **(GIVEN | options))


def test_an_unknown_argument_is_pythons_to_refuse(weights_file):
    with pytest.raises(TypeError, match="depht"):
        imagepiece_jax.load(weights_file, **GIVEN, depht=2)
