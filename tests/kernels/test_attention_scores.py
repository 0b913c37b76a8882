import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax import kernels
from imagepiece_jax.kernels import choice
from imagepiece_jax.kernels.attention_scores import (
    class_and_mean_queries,
    mean_attention,
)
from tests.helpers import tiny_vit
from tests.helpers.rounding import assert_close


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_scores_equal_the_definition(biased, dtype):
    """Scores of the class token and the mean query, and their gradients."""
    rng = np.random.default_rng(0)
    query, key = jnp.asarray(rng.normal(size=(2, 3, 9, 2, 4)), dtype)
    bias = None
    if biased:  # two tokens are masked
        bias = np.log(rng.integers(1, 5, (3, 9))).astype(np.float32)
        bias[:, 5:7] = -np.inf
    probe = rng.normal(size=(3, 9)).astype(np.float32)

    @functools.partial(tiny_vit.compiled, static_argnums=2)
    def gradients_and_scores(query, key, form):
        def weighted_sum(query, key):
            with form():
                scores = mean_attention(class_and_mean_queries(query), key, bias)
            return jnp.sum(scores * probe), scores

        return jax.grad(weighted_sum, (0, 1), has_aux=True)(query, key)

    gradients, scores = gradients_and_scores(query, key, kernels.reference_forms)
    form = choice.fast_forms if dtype == "bfloat16" else contextlib.nullcontext
    chosen_gradients, chosen_scores = gradients_and_scores(query, key, form)
    assert_close(chosen_scores, scores, units=16)
    assert (chosen_scores[:, 5:7] == 0).all() == biased
    for gradient, chosen_gradient in zip(gradients, chosen_gradients, strict=True):
        assert_close(chosen_gradient, gradient, units=16)
