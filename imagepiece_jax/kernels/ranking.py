"""Ranking, counting and picking tokens.

Outside `reference_forms` nothing sorts, scatters or accumulates along an axis. Counted
comparisons give ranks: one kernel on a GPU, where starting kernels costs most.
"""

import chex
import jax
import jax.numpy as jnp

from imagepiece_jax.common.nodes import onnx_op
from imagepiece_jax.kernels.choice import is_reference


@onnx_op
def rank_tokens(score):
    """Rank tokens by falling score, ties to the lower index. -> [B, n] int32.

    score: [B, n] float, where NaN counts as minus infinity, or `order_key` keys
    """
    chex.assert_rank(score, 2)
    key = score
    if not jnp.issubdtype(score.dtype, jnp.integer):
        key = order_key(score)
    if is_reference():
        tokens = jnp.argsort(key, descending=True, stable=True)
        return jnp.argsort(tokens).astype(jnp.int32)
    mine, other = _pair_indices(score)
    # For integers "higher, or equal and earlier" is a single comparison.
    other_key = key[:, None, :]
    own_key = key[:, :, None] + (other >= mine).astype(jnp.int32)
    return jnp.sum(other_key >= own_key, axis=-1, dtype=jnp.int32)


def order_key(score):
    """Map float scores to int32 keys with the same order; NaN becomes the lowest."""
    # Integers compare in one operation, floats with ties and NaN in several.
    score = score.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(score, jnp.int32)
    infinity = 0x7F800000
    magnitude = bits & 0x7FFFFFFF
    # The bits of negative floats descend as the floats ascend; both zeros become 0.
    key = jnp.where(bits < 0, -magnitude, magnitude)
    return jnp.where(magnitude > infinity, -infinity, key)


def _pair_indices(values):
    """Indices of both tokens in every pair. [B, n] -> [B, n, n] int32 twice."""
    shape = values.shape + values.shape[-1:]
    mine = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    other = jax.lax.broadcasted_iota(jnp.int32, shape, 2)
    return mine, other


@onnx_op
def count_kept_before(keep):
    """Count kept tokens before every token. [B, n] bool -> [B, n] int32."""
    chex.assert_rank(keep, 2)
    if is_reference():
        return jnp.cumsum(keep, axis=1, dtype=jnp.int32) - keep.astype(jnp.int32)
    mine, other = _pair_indices(keep)
    earlier = keep[:, None, :] & (other < mine)
    return jnp.sum(earlier, axis=-1, dtype=jnp.int32)


@onnx_op
def index_kept_tokens(keep):
    """Number kept tokens from 0; other tokens are negative. [B, n] -> [B, n] int32."""
    chex.assert_rank(keep, 2)
    if is_reference():
        return count_kept_before(keep) - jnp.where(keep, 0, keep.shape[1])
    mine, other = _pair_indices(keep)
    # A dropped token adds a penalty to its own sum, in the same pass.
    leaves = (other == mine) & ~keep[:, None, :]
    penalty = jnp.where(leaves, -keep.shape[1], 0)
    earlier = keep[:, None, :] & (other < mine)
    terms = earlier.astype(jnp.int32) + penalty
    return jnp.sum(terms, axis=-1, dtype=jnp.int32)


def index_kept_or(keep, otherwise):
    """`index_kept_tokens` for kept tokens, `otherwise` for the rest, in one pass."""
    mine, other = _pair_indices(keep)
    earlier = keep[:, None, :] & (other < mine)
    once = jnp.where(other == 0, otherwise[:, :, None], 0)
    terms = jnp.where(keep[:, :, None], earlier.astype(jnp.int32), once)
    return jnp.sum(terms, axis=-1, dtype=jnp.int32)


@onnx_op
def invert_order(position, values):
    """Find the index of every wanted value in `position` [B, n]. -> [B, m] int32.

    A missing value gives 0. A repeated value gives the sum of its indices.

    values: [m] values, or a number m for the values 0..m-1
    """
    chex.assert_rank(position, 2)
    if isinstance(values, int):
        values = jnp.arange(values)
    else:
        values = jnp.asarray(values)
    index = jnp.arange(position.shape[1], dtype=jnp.int32)[None, None, :]
    position = position[:, None, :]
    values = values.astype(jnp.int32)[None, :, None]
    indices = jnp.where(position == values, index, 0)
    return jnp.sum(indices, axis=-1, dtype=jnp.int32)


@onnx_op
def pick_by_rank(position, length, *values):
    """Gather values [B, n] int32 at `invert_order(position, length)`, in one pass.

    Returns a tuple of [B, length] int32.
    """
    if not is_reference():
        # Without it XLA recomputes all positions for every wanted index.
        position = jax.lax.optimization_barrier(position)
    ranks = jnp.arange(length, dtype=jnp.int32)[None, :, None]
    holds = position[:, None, :] == ranks
    picked = tuple(jnp.where(holds, value[:, None, :], 0) for value in values)
    return sum_arrays(picked, axis=2)


@onnx_op
def sum_arrays(values, axis):
    """Sum several arrays along an axis, in one pass."""
    if is_reference():
        return tuple(jnp.sum(value, axis=axis) for value in values)

    def add(a, b):
        return tuple(x + y for x, y in zip(a, b, strict=True))

    zeros = tuple(jnp.zeros((), value.dtype) for value in values)
    return jax.lax.reduce(tuple(values), zeros, add, (axis,))


@onnx_op
def gather_rows(x, index):
    """Gather rows of x [B, n, ...] at an index [B, ...] in [0, n), image by image.

    Returns [*index.shape, *x.shape[2:]].
    """
    if is_reference():
        return jax.vmap(lambda rows, chosen: rows[chosen])(x, index)
    batch, n = x.shape[:2]
    # One matrix of all rows: pairs (image, row) would be one more array in memory.
    start = n * jnp.arange(batch, dtype=index.dtype)
    index = index + start.reshape(batch, *(1,) * (index.ndim - 1))
    flat = x.reshape(batch * n, *x.shape[2:])
    return flat.at[index].get(mode="promise_in_bounds")


def mark_smallest(values, k):
    """Mark the k smallest values per row, ties to the lower index, in k passes."""
    if is_reference():
        return jnp.argsort(jnp.argsort(values, stable=True)) < k
    index = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    marked = jnp.zeros(values.shape, bool)
    for _ in range(min(k, values.shape[-1])):
        unmarked = jnp.where(marked, jnp.inf, values)
        nearest = jnp.argmin(unmarked, axis=-1).astype(jnp.int32)
        marked |= index == nearest[..., None]
    return marked


def interleave_tokens(first, second):
    """Interleave `first` [B, ceil(n/2)] (even places) and `second`. -> [B, n]."""
    batch, half = first.shape
    n = half + second.shape[1]
    missing = half - second.shape[1]
    second = jnp.pad(second, ((0, 0), (0, missing)))
    pairs = jnp.stack([first, second], axis=-1)
    return pairs.reshape(batch, 2 * half)[:, :n]
