"""Ranks against slow loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.kernels.ranking import rank_tokens
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
    ranks = rank_tokens(jnp.asarray([scores], jnp.float32))
    assert ranks.dtype == jnp.int32
    assert ranks[0].tolist() == oracles.rank_by_score(scores).tolist()
