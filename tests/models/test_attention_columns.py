"""Attention received by each token, over all queries and heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.models.attention import Attention, attention_columns
from imagepiece_jax.reduction.tokens import start
from tests.models import tiny

columns = tiny.compiled(attention_columns)


def slow_columns(query, key, bias=None, mask=None):
    """float64 loops over images, heads and live queries. [B, N, H, d] -> [B, N]."""
    query, key = (np.asarray(a, float) for a in (query, key))
    batch, length, heads, width = query.shape
    received = np.zeros((batch, length))
    for b in range(batch):
        live = [i for i in range(length) if mask is None or mask[b][i]]
        for h in range(heads):
            for reader in query[b, live, h]:
                logits = np.array([reader @ other for other in key[b, :, h]])
                logits = logits / np.sqrt(width)
                if bias is not None:
                    logits = logits + np.asarray(bias[b], float)
                weights = np.exp(logits - logits.max())
                received[b] += weights / weights.sum() / (heads * len(live))
    return received


def random_heads(length, dtype="float32", seed=0):
    """Query and key of two images with three heads of width 5."""
    values = np.random.default_rng(seed).normal(size=(2, 2, length, 3, 5))
    return values.astype(jnp.dtype(dtype))


def test_by_hand():
    """Two queries share 1 : 3 and 1 : 1 of their attention: means 3 / 8 and 5 / 8."""
    query = np.float32([np.log(3), 0]).reshape(1, 2, 1, 1)
    key = np.float32([0, 1]).reshape(1, 2, 1, 1)
    got = columns(query, key)
    np.testing.assert_allclose(got, [[0.375, 0.625]], rtol=1e-6)


@pytest.mark.parametrize(
    "length, biased", [(1, True), (2, False), (7, False), (7, True)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_columns_equal_slow_ones_in_float32(length, biased, dtype):
    query, key = random_heads(length, dtype)
    sizes = np.random.default_rng(1).integers(1, 9, size=(2, length))
    bias = np.log(sizes, dtype=np.float32) if biased else None
    got = columns(query, key, bias)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, slow_columns(query, key, bias), rtol=1e-5)
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-6)


def test_logits_that_are_far_apart_stay_finite():
    query, key = 100 * random_heads(6)
    got = columns(query, key)
    np.testing.assert_allclose(got, slow_columns(query, key), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_the_tap_has_image_columns_of_all_live_queries(prefix, masked):
    """The prefix reads as well; masked tokens neither read nor are read."""
    module = Attention(12, num_heads=3)
    x = np.random.default_rng(0).normal(size=(2, 7, 12)).astype(np.float32)
    mask = np.float32([[1, 1, 0, 1, 1, 0, 1], [1] * 7]) if masked else None

    def init(x):
        return module.init(jax.random.key(0), x, start(x, prefix))

    @tiny.compiled
    def tap(variables, x):
        state = start(x, prefix)
        if masked:
            state = state.replace(mask=mask[:, prefix:])
        _, scores = module.apply(variables, x, state, {"attn_columns"})
        return scores["attn_columns"]

    variables = tiny.fill(jax.eval_shape(init, x))
    params = variables["params"]
    heads = (
        (x.astype(float) @ params[name]["kernel"] + params[name]["bias"])
        for name in "qk"
    )
    query, key = (a.reshape(2, 7, 3, 4) for a in heads)
    bias = np.where(mask, 0, -1e9) if masked else None
    want = slow_columns(query, key, bias, mask)[:, prefix:]
    np.testing.assert_allclose(tap(variables, x), want, rtol=1e-4, atol=1e-5)
