"""GELU and its handwritten slope against central differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.kernels.gelu import gelu
from tests.helpers import oracles, tiny_vit
from tests.helpers.rounding import assert_close


@pytest.mark.parametrize("form", ["exact", "tanh", "quick"])
def test_slope_of_gelu_is_that_of_its_differences(form):
    """Central differences of the definitions, in float64."""
    x = np.linspace(-6, 6, 241)
    slow = functools.partial(oracles.gelu, form=form)
    want = (slow(x + 1e-5) - slow(x - 1e-5)) / 2e-5
    both = jax.vmap(jax.value_and_grad(lambda v: gelu(v, form)))
    value, slope = tiny_vit.compiled(both)(x.astype(np.float32))
    assert_close(slope, want)
    assert_close(value, slow(x))


@pytest.mark.parametrize("form", ["exact", "tanh"])
def test_gelu_keeps_its_input_alone_and_its_type(form):
    x = np.asarray([-3e4, -4.0, 0.0, 3.0, 3e4], jnp.bfloat16)

    @tiny_vit.compiled
    def both(x):
        out, pull = jax.vjp(lambda x: gelu(x, form), x)
        kept = [leaf.shape for leaf in jax.tree.leaves(pull) if hasattr(leaf, "shape")]
        assert kept == [x.shape]
        return out, *pull(jnp.ones_like(x))

    out, slope = both(x)
    assert out.dtype == slope.dtype == jnp.bfloat16
    # Phi(x) + x phi(x): -0.0005 at -4, 0.5 at 0, 1.0119 at 3; flat far away.
    want = [0, -0.0005, 0.5, 1.012, 1]
    np.testing.assert_allclose(slope.astype(np.float32), want, atol=0.005)
