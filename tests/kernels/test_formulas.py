"""GELU, layer norm, cosines, merged means and size directions, by their formulas."""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imagepiece_jax import kernels
from imagepiece_jax.kernels import choice, norm, size_direction
from imagepiece_jax.kernels.gelu import gelu
from imagepiece_jax.kernels.similarity import cosine_similarity
from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.state import Assignment, TokenState
from tests.helpers import oracles, tiny_vit
from tests.helpers.random_gradients import draw_normal, pull_back
from tests.helpers.rounding import assert_close


@pytest.mark.parametrize("forms", [contextlib.nullcontext, kernels.reference_forms])
@pytest.mark.parametrize("variant", ["exact", "tanh", "quick"])
def test_slope_of_gelu_equals_differences(variant, forms):
    """Central differences in float64. The chosen form saves its input alone."""
    x = np.append(np.linspace(-6, 6, 241), [-300, 300])
    definition = functools.partial(oracles.gelu, form=variant)
    expected = (definition(x + 1e-5) - definition(x - 1e-5)) / 2e-5

    @tiny_vit.compiled
    def value_and_slope(x):
        with forms():
            value, pull = jax.vjp(lambda x: gelu(x, variant), x)
        saved = [leaf.shape for leaf in jax.tree.leaves(pull) if hasattr(leaf, "shape")]
        assert saved == [x.shape] or forms is kernels.reference_forms
        return value, *pull(jnp.ones_like(x))

    value, slope = value_and_slope(x.astype(np.float32))
    assert_close(slope, expected, units=64)  # derived tanh cancels
    assert_close(value[:-2], definition(x[:-2]))


@pytest.mark.parametrize("shape, eps", [((7, 12), 1e-6), ((2, 3, 12), 0.1)])
def test_layer_norm_and_its_gradient_equal_flaxs(shape, eps):
    """Tokens are far from zero, so canceling squares would show."""
    x = 3 * draw_normal(*shape) + 50 * draw_normal(*shape[:-1], 1, seed=1)
    scale = 1 + 0.3 * draw_normal(12, seed=2)
    bias = draw_normal(12, seed=3)

    def flax_norm(x, scale, bias):
        layer = nn.LayerNorm(epsilon=eps, use_fast_variance=False)
        return layer.apply({"params": {"scale": scale, "bias": bias}}, x)

    def our_norm(x, scale, bias):
        return norm.layer_norm(x, scale, bias, jnp.float32, eps)

    actual = pull_back(our_norm, contextlib.nullcontext, x, scale, bias)
    expected = pull_back(flax_norm, contextlib.nullcontext, x, scale, bias)
    chex.assert_trees_all_close(actual, expected, rtol=1e-7, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cosines_equal_the_oracle_in_float32(dtype):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, 5, 8))
    b = rng.normal(size=(2, 3, 8))
    a[0, 1] = b[1, 2] = 0.0  # their cosine is 0, never NaN
    a[1, 2] = [1e-3] + [0] * 7  # |v|^2 = eps lowers the cosine
    a = jnp.asarray(a, dtype)
    b = jnp.asarray(b, dtype)
    for other, cosines in ((b, cosine_similarity(a, b)), (a, cosine_similarity(a))):
        assert cosines.dtype == jnp.float32
        expected = [oracles.cosine(a[image], other[image]) for image in range(2)]
        np.testing.assert_allclose(cosines, expected, atol=2e-6)


def test_sizes_of_many_digits_count_in_full():
    """Opposite tokens' sizes have 12 bits, and their leading bits cancel."""
    n = 30
    x = np.zeros((1, n + 1, 4), np.float32)
    x[0, 1:] = np.where(np.arange(n) % 2, -1, 1)[:, None]
    size = np.ones((1, n + 1), np.float32)
    size[0, 1:] = np.where(np.arange(n) % 2, 2047, 2049)
    result = Assignment(jnp.zeros((1, n), jnp.int32), n_out=1)
    state = TokenState(x=jnp.asarray(x, jnp.bfloat16), size=jnp.asarray(size))
    with choice.fast_forms():
        moved = moves.apply_result(state, result)
    mean = (x[0, 1:, 0] * size[0, 1:]).sum() / size[0, 1:].sum()
    assert 0 < mean < 1e-3
    unit = float(jnp.finfo(jnp.bfloat16).eps) * mean
    np.testing.assert_allclose(np.float32(moved.x[0, 1]), mean, rtol=0, atol=unit)


def test_no_direction_is_used_less():
    """All angles in two dimensions."""
    query_moments = np.diag([1.0, 4.0])
    key_moments = np.array([[9.0, 2.0], [2.0, 1.0]])

    def logit_loss(u):
        return (u @ query_moments @ u) * (u @ key_moments @ u)

    angles = np.linspace(0, np.pi, 100_001)
    least_loss = min(map(logit_loss, np.stack([np.cos(angles), np.sin(angles)], -1)))
    direction = size_direction.least_used_direction(query_moments, key_moments)
    assert np.linalg.norm(direction) == pytest.approx(1)
    assert logit_loss(direction) == pytest.approx(least_loss, rel=1e-6)
