"""Hand-written backward passes against the derivatives of the forward passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imagepiece_jax.models import layers
from tests import oracles
from tests.models import tiny
from tests.rounding import assert_close


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pulled_back(fn, *arguments):
    """Value of `fn`, and what it makes of one random gradient of that value."""

    def both(*arguments):
        out, pull = jax.vjp(fn, *arguments)
        return out, pull(jnp.asarray(draw(*out.shape, seed=9), out.dtype))

    return tiny.compiled(both)(*arguments)


@pytest.mark.parametrize("form", ["exact", "tanh", "quick"])
def test_slope_of_gelu_is_that_of_its_differences(form):
    """Central differences of the definitions, in float64."""
    x = np.linspace(-6, 6, 241)
    slow = functools.partial(oracles.gelu, form=form)
    want = (slow(x + 1e-5) - slow(x - 1e-5)) / 2e-5
    both = jax.vmap(jax.value_and_grad(lambda v: layers.gelu(v, form)))
    value, slope = tiny.compiled(both)(x.astype(np.float32))
    assert_close(slope, want)
    assert_close(value, slow(x))


@pytest.mark.parametrize("form", ["exact", "tanh"])
def test_gelu_keeps_its_input_alone_and_its_type(form):
    x = np.asarray([-3e4, -4.0, 0.0, 3.0, 3e4], jnp.bfloat16)

    @tiny.compiled
    def both(x):
        out, pull = jax.vjp(lambda x: layers.gelu(x, form), x)
        kept = [leaf.shape for leaf in jax.tree.leaves(pull) if hasattr(leaf, "shape")]
        assert kept == [x.shape]
        return out, *pull(jnp.ones_like(x))

    out, slope = both(x)
    assert out.dtype == slope.dtype == jnp.bfloat16
    # Phi(x) + x phi(x): -0.0005 at -4, 0.5 at 0, 1.0119 at 3; flat far away.
    want = [0, -0.0005, 0.5, 1.012, 1]
    np.testing.assert_allclose(slope.astype(np.float32), want, atol=0.005)


@pytest.mark.parametrize("shape, eps", [((7, 12), 1e-6), ((2, 3, 12), 0.1)])
def test_layer_norm_is_flaxs_and_so_is_its_gradient(shape, eps):
    """Tokens far from zero: squares that cancel would show."""
    x = 3 * draw(*shape) + 50 * draw(*shape[:-1], 1, seed=1)
    scale = 1 + 0.3 * draw(12, seed=2)
    bias = draw(12, seed=3)

    def flaxs(x, scale, bias):
        norm = nn.LayerNorm(epsilon=eps, use_fast_variance=False)
        return norm.apply({"params": {"scale": scale, "bias": bias}}, x)

    def ours(x, scale, bias):
        return layers.layer_norm(x, scale, bias, jnp.float32, eps)

    got = pulled_back(ours, x, scale, bias)
    want = pulled_back(flaxs, x, scale, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_layer_norm_of_bfloat16_works_in_float32():
    x = (draw(4, 33) + 20).astype(jnp.bfloat16)
    scale = 1 + 0.3 * draw(33, seed=2)
    bias = draw(33, seed=3)

    def half(x, scale, bias):
        return layers.layer_norm(x, scale, bias, jnp.bfloat16)

    def whole(x, scale, bias):
        return layers.layer_norm(x, scale, bias, jnp.float32)

    out, slopes = pulled_back(half, x, scale, bias)
    assert out.dtype == slopes[0].dtype == jnp.bfloat16
    assert slopes[1].dtype == slopes[2].dtype == jnp.float32
    probe = draw(4, 33, seed=9).astype(jnp.bfloat16).astype(np.float32)

    @tiny.compiled
    def exactly(*arguments):
        want, pull = jax.vjp(whole, *arguments)
        return want, *pull(probe)

    exact = exactly(x.astype(np.float32), scale, bias)
    for got, want in zip((out, *slopes), exact, strict=True):
        got = np.asarray(got, np.float32)
        np.testing.assert_allclose(got, want, rtol=2**-8, atol=2e-5)


def test_what_comes_back_to_padding_is_dropped():
    x = draw(2, 4, 3)
    gradient = draw(2, 4, 3, seed=1)
    gradient[:, 3] = np.nan

    @tiny.compiled
    def both(x, gradient):
        out, pull = jax.vjp(lambda x: layers.padded_from(x, 3), x)
        return out, *pull(gradient)

    out, back = both(x, gradient)
    np.testing.assert_array_equal(out, x)
    np.testing.assert_array_equal(back[:, :3], gradient[:, :3])
    np.testing.assert_array_equal(back[:, 3], np.zeros((2, 3)))


def test_token_major_changes_no_number():
    x = draw(2, 4, 3)
    out, (back,) = pulled_back(layers.token_major, x)
    np.testing.assert_array_equal(out, x)
    np.testing.assert_array_equal(back, draw(2, 4, 3, seed=9))
