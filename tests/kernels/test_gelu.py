import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax import kernels
from imagepiece_jax.kernels.gelu import gelu
from tests.helpers import oracles, tiny_vit
from tests.helpers.rounding import assert_close


@pytest.mark.parametrize("forms", [contextlib.nullcontext, kernels.reference_forms])
@pytest.mark.parametrize("form", ["exact", "tanh", "quick"])
def test_slope_of_gelu_equals_differences(form, forms):
    """Central differences of the definitions, in float64."""
    x = np.linspace(-6, 6, 241)
    definition = functools.partial(oracles.gelu, form=form)
    expected = (definition(x + 1e-5) - definition(x - 1e-5)) / 2e-5
    value_and_slope = jax.vmap(jax.value_and_grad(lambda v: gelu(v, form)))
    with forms():
        value, slope = tiny_vit.compiled(value_and_slope)(x.astype(np.float32))
    assert_close(slope, expected, units=64)  # derived tanh cancels
    assert_close(value, definition(x))


@pytest.mark.parametrize("form", ["exact", "tanh"])
def test_gelu_saves_its_input_alone_and_keeps_its_type(form):
    x = np.asarray([-3e4, -4.0, 0.0, 3.0, 3e4], jnp.bfloat16)

    @tiny_vit.compiled
    def value_and_slope(x):
        out, pull = jax.vjp(lambda x: gelu(x, form), x)
        saved = [leaf.shape for leaf in jax.tree.leaves(pull) if hasattr(leaf, "shape")]
        assert saved == [x.shape]
        return out, *pull(jnp.ones_like(x))

    out, slope = value_and_slope(x)
    assert out.dtype == slope.dtype == jnp.bfloat16
    # Phi(x) + x phi(x): -0.0005 at -4, 0.5 at 0, 1.0119 at 3; flat far away.
    expected = [0, -0.0005, 0.5, 1.012, 1]
    np.testing.assert_allclose(slope.astype(np.float32), expected, atol=0.005)
