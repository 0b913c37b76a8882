"""Attention from few queries, in every form, against its definition."""

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
def test_attention_is_that_of_the_definition(biased, dtype):
    """Scores of the class token and the mean query, and their gradients."""
    rng = np.random.default_rng(0)
    query, key = jnp.asarray(rng.normal(size=(2, 3, 9, 2, 4)), dtype)
    bias = None
    if biased:  # two tokens are masked
        bias = np.log(rng.integers(1, 5, (3, 9))).astype(np.float32)
        bias[:, 5:7] = -np.inf
    probe = rng.normal(size=(3, 9)).astype(np.float32)

    @functools.partial(tiny_vit.compiled, static_argnums=2)
    def attended(query, key, form):
        def total(query, key):
            with form():
                row = mean_attention(class_and_mean_queries(query), key, bias)
            return jnp.sum(row * probe), row

        return jax.grad(total, (0, 1), has_aux=True)(query, key)

    slopes, row = attended(query, key, kernels.reference_forms)
    form = choice.fast_forms if dtype == "bfloat16" else contextlib.nullcontext
    got_slopes, got = attended(query, key, form)
    assert_close(got, row, units=16)
    assert (got[:, 5:7] == 0).all() == biased
    for slope, other in zip(slopes, got_slopes, strict=True):
        assert_close(other, slope, units=16)
