"""Ordering and similarity against slow loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction import ops
from tests import oracles

NAN = np.nan
INF = np.inf


@pytest.mark.parametrize(
    "scores",
    [
        [0.3, 0.1, 0.2],
        [0.5, 0.5, 0.5, 0.5],
        [NAN, 0.1, NAN, -INF, INF, 0.1],
        [NAN, NAN],
        [-0.0, 0.0, -0.0],
        [7.0],
    ],
)
def test_rank_breaks_ties_by_index_and_puts_nan_last(scores):
    got = ops.rank(jnp.asarray([scores], jnp.float32))
    assert got.dtype == jnp.int32
    assert got[0].tolist() == oracles.rank_by_score(scores).tolist()


def test_count_before_counts_the_kept_tokens_to_the_left():
    keep = np.random.default_rng(0).random((5, 21)) < 0.5
    got = np.asarray(ops.count_before(jnp.asarray(keep)))
    for row, counted in zip(keep, got, strict=True):
        assert counted.tolist() == [int(row[:i].sum()) for i in range(21)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cosine_is_the_cosine_in_float32(dtype):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, 5, 8))
    b = rng.normal(size=(2, 3, 8))
    # Zero vectors: their cosine is 0, never NaN.
    a[0, 1] = 0.0
    b[1, 2] = 0.0
    a = jnp.asarray(a, dtype)
    b = jnp.asarray(b, dtype)
    got = ops.cosine(a, b)
    assert got.dtype == jnp.float32
    for image in range(2):
        want = oracles.cosine(np.asarray(a[image], float), np.asarray(b[image], float))
        np.testing.assert_allclose(got[image], want, atol=2e-6)
    assert not got[0, 1].any()
    assert not got[1, :, 2].any()
    within = ops.cosine(a)
    np.testing.assert_allclose(within, ops.cosine(a, a), atol=2e-6)
    assert not within[0, 1].any()
    tiny = jnp.asarray([[[1e-3, 0.0]]])  # |v|^2 = eps: half of the true cosine
    assert float(ops.cosine(tiny)[0, 0, 0]) == pytest.approx(0.5, rel=1e-5)
