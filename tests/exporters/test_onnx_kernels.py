import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax import kernels
from imagepiece_jax.kernels import attention, merging
from imagepiece_jax.kernels.ranking import (
    find_first_largest,
    gather_rows,
    index_kept_tokens,
    invert_order,
    mark_smallest,
    pick_by_rank,
    rank_tokens,
)
from tests.helpers.onnx_runs import function_outputs, random_outputs
from tests.reduction.test_moves import random_move

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


@pytest.mark.parametrize(
    "n_out, drop, options, fields",
    [
        (4, 0, {}, {}),
        (4, 0, {"prefix": 0, "weighted": True}, {}),
        (4, 0, {"prefix": 2}, {"by_size": False}),
        (4, 0, {"weighted": True, "mean": False}, {}),
        (4, 0, {}, {"weight": np.ones((3, 7), bool)}),  # a mean over tokens
        (4, 1, {"prefix": 2}, {"merges": False}),
        (7, 0, {"weighted": True}, {}),
    ],
)
def test_tokens_and_values_merge_like_in_jax(n_out, drop, options, fields):
    """Three images agree with JAX, whose oracle is in tests/reduction."""
    state, result = random_move(7, n_out, drop=drop, **options)
    result = result.replace(**fields)
    rng = np.random.default_rng(1)
    tokens = state.x.shape[1]
    weights = rng.uniform(size=(3, 2, tokens, tokens)).astype(np.float32)
    slots = state.num_prefix + n_out
    value = rng.normal(size=(3, slots, 2, 4)).astype(np.float32)
    parts = (state.x, state.size[..., None], weights.reshape(3, tokens, -1))

    def merge(x):
        x, size, weights = jnp.split(x, [4, 5], 2)
        size = size[..., 0]
        rows, sizes, _ = merging.merge_tokens(x, size, None, result)
        weights = weights.reshape(3, 2, tokens, tokens)
        out = attention.attend_merged(weights, value, result, size)
        first = attention.attend_merged(weights[:, :, :1], value, result, size)
        parts = (rows, sizes, out, first)
        return jnp.concatenate([part.reshape(3, -1) for part in parts], axis=1)

    with kernels.reference_forms():
        expected, *results = function_outputs(merge, np.concatenate(parts, axis=2))
    for merged in results:
        np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-5)
