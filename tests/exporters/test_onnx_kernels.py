import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax import kernels
from imagepiece_jax.kernels.ranking import (
    find_first_largest,
    gather_rows,
    index_kept_tokens,
    invert_order,
    mark_smallest,
    pick_by_rank,
    rank_tokens,
)
from tests.helpers.onnx_runs import random_outputs

NUMBERS = np.arange(11, 23, dtype=np.int32).reshape(2, 6)


def sorted_by(x):
    return invert_order(rank_tokens(x), x.shape[1])


def rows_after_first(x, tokens):
    """Rows of tokens, counted from the second row."""
    rows = jnp.stack([x, 2 * x, -x], 2)
    return gather_rows(jnp.concatenate([rows, 3 * rows], 1)[:, 1:], tokens)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: pick_by_rank(rank_tokens(x), 3, NUMBERS)[0],
        # Fewer tokens are kept than picked.
        lambda x: pick_by_rank(index_kept_tokens(x > 0), 6, NUMBERS)[0],
        lambda x: invert_order(rank_tokens(x), np.array([1, 3])),
        lambda x: invert_order(rank_tokens(x), np.array([-1, 9, 2])),  # two are missing
        lambda x: invert_order(index_kept_tokens(x > 0), 6),
        lambda x: invert_order(index_kept_tokens(rank_tokens(x) < 4), 4),
        lambda x: find_first_largest(x[:, :, None] * x[:, None])[1],
        lambda x: mark_smallest(x, 4).astype(float),
        lambda x: rows_after_first(x, invert_order(rank_tokens(x), 4)),
        lambda x: rows_after_first(x, NUMBERS % 11),
        lambda x: rows_after_first(x, sorted_by(x).reshape(2, 3, 2)),
        lambda x: gather_rows(x > 0, sorted_by(x)).astype(float),
    ],
)
def test_tokens_are_picked_like_in_jax(fn):
    with kernels.reference_forms():
        expected, *results = random_outputs(fn, (2, 6))
    for result in results:
        np.testing.assert_array_equal(result, expected)
