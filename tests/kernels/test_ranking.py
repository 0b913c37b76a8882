"""Ranks and counts against slow loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.kernels.ranking import count_kept_before, rank_tokens
from tests.helpers import oracles

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
    got = rank_tokens(jnp.asarray([scores], jnp.float32))
    assert got.dtype == jnp.int32
    assert got[0].tolist() == oracles.rank_by_score(scores).tolist()


def test_count_before_counts_the_kept_tokens_to_the_left():
    keep = np.random.default_rng(0).random((5, 21)) < 0.5
    got = np.asarray(count_kept_before(jnp.asarray(keep)))
    for row, counted in zip(keep, got, strict=True):
        assert counted.tolist() == [int(row[:i].sum()) for i in range(21)]
