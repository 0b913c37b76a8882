import contextlib

import chex
import jax.numpy as jnp
import pytest
from flax import linen as nn

from imagepiece_jax.kernels.norm import layer_norm
from tests.helpers.random_gradients import draw_normal, pull_back


@pytest.mark.parametrize("shape, eps", [((7, 12), 1e-6), ((2, 3, 12), 0.1)])
def test_layer_norm_and_its_gradient_equal_flaxs(shape, eps):
    """Tokens are far from zero, so canceling squares would show."""
    x = 3 * draw_normal(*shape) + 50 * draw_normal(*shape[:-1], 1, seed=1)
    scale = 1 + 0.3 * draw_normal(12, seed=2)
    bias = draw_normal(12, seed=3)

    def flax_norm(x, scale, bias):
        norm = nn.LayerNorm(epsilon=eps, use_fast_variance=False)
        return norm.apply({"params": {"scale": scale, "bias": bias}}, x)

    def our_norm(x, scale, bias):
        return layer_norm(x, scale, bias, jnp.float32, eps)

    actual = pull_back(our_norm, contextlib.nullcontext, x, scale, bias)
    expected = pull_back(flax_norm, contextlib.nullcontext, x, scale, bias)
    chex.assert_trees_all_close(actual, expected, rtol=1e-7, atol=1e-5)
