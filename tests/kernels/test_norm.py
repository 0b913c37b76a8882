"""Layer norm and its handwritten gradient against Flax's."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imagepiece_jax.kernels.norm import layer_norm
from tests.helpers.random_gradients import draw_normal, pull_back


@pytest.mark.parametrize("shape, eps", [((7, 12), 1e-6), ((2, 3, 12), 0.1)])
def test_layer_norm_is_flaxs_and_so_is_its_gradient(shape, eps):
    """Tokens are far from zero, so canceling squares would show."""
    x = 3 * draw_normal(*shape) + 50 * draw_normal(*shape[:-1], 1, seed=1)
    scale = 1 + 0.3 * draw_normal(12, seed=2)
    bias = draw_normal(12, seed=3)

    def flaxs(x, scale, bias):
        norm = nn.LayerNorm(epsilon=eps, use_fast_variance=False)
        return norm.apply({"params": {"scale": scale, "bias": bias}}, x)

    def ours(x, scale, bias):
        return layer_norm(x, scale, bias, jnp.float32, eps)

    got = pull_back(ours, contextlib.nullcontext, x, scale, bias)
    want = pull_back(flaxs, contextlib.nullcontext, x, scale, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)
