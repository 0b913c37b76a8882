"""Layer norm and its handwritten gradient against Flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imagepiece_jax.kernels.norm import layer_norm
from tests.helpers import tiny_vit


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pulled_back(fn, *arguments):
    """Value of `fn`, and its gradients for one random gradient of the value."""

    def both(*arguments):
        out, pull = jax.vjp(fn, *arguments)
        return out, pull(jnp.asarray(draw(*out.shape, seed=9), out.dtype))

    return tiny_vit.compiled(both)(*arguments)


@pytest.mark.parametrize("shape, eps", [((7, 12), 1e-6), ((2, 3, 12), 0.1)])
def test_layer_norm_is_flaxs_and_so_is_its_gradient(shape, eps):
    """Tokens are far from zero, so canceling squares would show."""
    x = 3 * draw(*shape) + 50 * draw(*shape[:-1], 1, seed=1)
    scale = 1 + 0.3 * draw(12, seed=2)
    bias = draw(12, seed=3)

    def flaxs(x, scale, bias):
        norm = nn.LayerNorm(epsilon=eps, use_fast_variance=False)
        return norm.apply({"params": {"scale": scale, "bias": bias}}, x)

    def ours(x, scale, bias):
        return layer_norm(x, scale, bias, jnp.float32, eps)

    got = pulled_back(ours, x, scale, bias)
    want = pulled_back(flaxs, x, scale, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)
