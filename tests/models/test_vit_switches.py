"""JAX's user switches change no model: all methods, forward and backward.

`jax_numpy_dtype_promotion="strict"` and `jax_numpy_rank_promotion="raise"` refuse
operations while tracing, and `jax_enable_x64` widens types. Nothing is compiled.
"""

import jax
import jax.numpy as jnp
import pytest

from imagepiece_jax.reduction.methods import METHODS
from tests.helpers import masked_models, tiny_vit
from tests.helpers.traced_programs import operations_in_64_bits
from tests.models.test_rotary import ARCHS
from tests.models.test_vit_families import FAMILIES, small_case

PARTS = {"conv": {"stem": "conv"}, "drop": {"drop_path_rate": 0.3}}
PARTS |= {name: {"arch": arch} for name, arch in FAMILIES.items()}
PARTS |= {name: {"arch": arch, "embed_dim": 24} for name, arch in ARCHS.items()}


@pytest.fixture(autouse=True)
def _switches():
    strict = jax.numpy_dtype_promotion("strict")
    with strict, jax.numpy_rank_promotion("raise"), jax.enable_x64(True):
        yield


def gradient(model, train=True, batch=2):
    """Jaxpr of a loss of logits and tokens, its gradient, and new statistics."""
    keys = masked_models.keys(batch)
    keys["drop_path"] = keys["reducer"]
    rest = dict(tiny_vit.shapes(model))
    params = rest.pop("params")

    def loss(params, rest, images):
        variables = {"params": params, **rest}
        out, changed = model.apply(
            variables, images, train, keys, mutable=["batch_stats"]
        )
        return out.logits.sum() + jnp.sum(out.tokens, dtype=jnp.float32), changed

    traced = jax.make_jaxpr(jax.value_and_grad(loss, has_aux=True))
    return traced(params, rest, tiny_vit.images(batch))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_traced_with_the_same_types(name):
    """Methods train in bfloat16; methods with selectors are evaluated, too."""
    depth, fields, _ = small_case(name)
    trained = tiny_vit.model(fields, depth=depth, masked=True, dtype="bfloat16")
    assert operations_in_64_bits(gradient(trained)) == []
    if trained.has_selectors:
        evaluated = tiny_vit.model(fields, depth=depth)
        traced = jax.make_jaxpr(evaluated.apply)(
            tiny_vit.shapes(evaluated), tiny_vit.images(2)
        )
        assert operations_in_64_bits(traced) == []


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_a_model_is_traced_with_the_same_types(part):
    options = {"depth": 2, "dtype": "bfloat16"} | PARTS[part]
    model = tiny_vit.model("tome:r=4", **options)
    assert operations_in_64_bits(gradient(model)) == []
