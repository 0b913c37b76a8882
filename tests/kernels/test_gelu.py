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
    """Central differences in float64. The chosen form saves its input alone."""
    x = np.append(np.linspace(-6, 6, 241), [-300, 300])
    definition = functools.partial(oracles.gelu, form=form)
    expected = (definition(x + 1e-5) - definition(x - 1e-5)) / 2e-5

    @tiny_vit.compiled
    def value_and_slope(x):
        with forms():
            value, pull = jax.vjp(lambda x: gelu(x, form), x)
        saved = [leaf.shape for leaf in jax.tree.leaves(pull) if hasattr(leaf, "shape")]
        assert saved == [x.shape] or forms is kernels.reference_forms
        return value, *pull(jnp.ones_like(x))

    value, slope = value_and_slope(x.astype(np.float32))
    assert_close(slope, expected, units=64)  # derived tanh cancels
    assert_close(value[:-2], definition(x[:-2]))
