import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imagepiece_jax import kernels
from imagepiece_jax.kernels import attention_scores, forms, norm, size_direction
from imagepiece_jax.kernels.folded_stem import FoldedStem, fold_stem
from imagepiece_jax.kernels.gelu import gelu
from imagepiece_jax.models.layers import NORM_EPSILON, ConvStem, PatchStem
from tests.helpers import oracles, tiny_vit
from tests.helpers.random_gradients import draw_normal, pull_back
from tests.helpers.rounding import assert_close


def assert_forms_agree(dtype, fn, *arrays, roundings):
    """The chosen form has the definition's values, gradients and types.

    roundings: allowed error, in roundings of the largest number
    """
    chosen = pull_back(fn, contextlib.nullcontext, *arrays)
    defined = pull_back(fn, kernels.reference_forms, *arrays)
    chex.assert_trees_all_equal_shapes_and_dtypes(chosen, defined)
    chosen, defined = (
        np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (chosen, defined)
    )
    atol = float(jnp.finfo(dtype).eps) * roundings * np.abs(defined).max()
    np.testing.assert_allclose(chosen, defined, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype, roundings", [("float32", 32), ("bfloat16", 1)])
def test_sizes_in_a_direction(dtype, roundings):
    key = draw_normal(2, 7, 3, 8, dtype=dtype)
    log_size = np.log(np.random.default_rng(1).integers(1, 9, (2, 7)), dtype=np.float32)

    def add(key):
        with forms.fast_forms():
            return size_direction.add_sizes(key, log_size, draw_normal(3, 8, seed=2))

    assert_forms_agree(dtype, add, key, roundings=roundings)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_scores(biased, dtype):
    """Scores of the class token and the mean query; two tokens are masked by bias."""
    query = draw_normal(3, 9, 2, 4, dtype=dtype)
    key = draw_normal(3, 9, 2, 4, seed=1, dtype=dtype)
    bias = None
    if biased:
        bias = draw_normal(3, 9, seed=2)
        bias[:, 5:7] = -np.inf

    def scores(query, key):
        with forms.fast_forms(dtype == "bfloat16"):
            queries = attention_scores.class_and_mean_queries(query)
            return attention_scores.mean_attention(queries, key, bias)

    assert_forms_agree("float32", scores, query, key, roundings=16)


@pytest.mark.parametrize(
    "stem, pixels", [("patch", 1), *(("conv", p) for p in (1, 2, 8))]
)
def test_folded_stem(stem, pixels):
    """A folded stem equals its trained stem, also for a tiny variance."""
    images = tiny_vit.images(2, side=(16, 24))
    trained = {"patch": PatchStem, "conv": ConvStem}[stem](8, 8)
    variables = tiny_vit.fill(tiny_vit.shapes(trained, (16, 24)))
    stats = variables.get("batch_stats", {})
    if stats:
        stats["norm_0"]["var"] = np.full_like(stats["norm_0"]["var"], 1e-5)
    folded = FoldedStem(
        8, 8, widths=(2, 4, 8) if stats else (), pixels_per_position=pixels
    )
    # `optimize` works under a user's guard on devices that join no pixels.
    with jax.transfer_guard("disallow" if pixels == 1 else "allow"):
        params = fold_stem(variables["params"], stats, NORM_EPSILON, pixels)

    chosen, defined = (
        pull_back(functools.partial(form.apply, own), contextlib.nullcontext, images)
        for form, own in ((folded, {"params": params}), (trained, variables))
    )
    assert_close(chosen, defined, units=128)


@pytest.mark.parametrize("dtype, roundings", [("float32", 64), ("bfloat16", 4)])
@pytest.mark.parametrize("reduction", ["none", "peaks:blocks=(1,):keep_rate=0.6"])
def test_whole_models(reduction, dtype, roundings):
    """In bfloat16 every block rounds its outputs."""
    model = tiny_vit.model(reduction, dtype=dtype, depth=2)
    variables = tiny_vit.variables(model)
    images = tiny_vit.images(2)

    def logits(params):
        return model.apply({"params": params}, images, train=True).logits

    assert_forms_agree(dtype, logits, variables["params"], roundings=roundings)


@pytest.mark.parametrize("form", [contextlib.nullcontext, kernels.reference_forms])
@pytest.mark.parametrize("variant", ["exact", "tanh", "quick"])
def test_slope_of_gelu_equals_differences(variant, form):
    """Central differences in float64. The chosen form saves its input alone."""
    x = np.append(np.linspace(-6, 6, 241), [-300, 300])
    definition = functools.partial(oracles.gelu, form=variant)
    expected = (definition(x + 1e-5) - definition(x - 1e-5)) / 2e-5

    @tiny_vit.compiled
    def value_and_slope(x):
        with form():
            value, pull = jax.vjp(lambda x: gelu(x, variant), x)
        saved = [leaf.shape for leaf in jax.tree.leaves(pull) if hasattr(leaf, "shape")]
        assert saved == [x.shape] or form is kernels.reference_forms
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
