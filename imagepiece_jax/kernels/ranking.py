"""Ranking, counting and picking tokens.

Outside `reference_forms` nothing sorts, scatters or accumulates along an axis. Counted
comparisons give ranks: one kernel on a GPU, where starting kernels costs most.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, Num, Shaped

from imagepiece_jax.common.nodes import onnx_op
from imagepiece_jax.kernels.array_shapes import TokenFlags, TokenIndices
from imagepiece_jax.kernels.choice import is_reference


@onnx_op
def rank_tokens(score: Num[Array, "batch tokens"]) -> Int32[Array, "batch tokens"]:
    """Rank tokens from 0 by falling score, ties to the lower index.

    score: floats, where NaN counts as minus infinity, or `order_key` keys
    """
    key = score
    if not jnp.issubdtype(score.dtype, jnp.integer):
        key = order_key(score)
    if is_reference():
        ranked_tokens = jnp.argsort(key, descending=True, stable=True)
        return jnp.argsort(ranked_tokens).astype(jnp.int32)
    own_index, other_index = _pair_indices(score)
    # For integers "higher, or equal and earlier" is a single comparison.
    other_key = key[:, None, :]
    own_key = key[:, :, None] + (other_index >= own_index).astype(jnp.int32)
    return jnp.sum(other_key >= own_key, axis=-1, dtype=jnp.int32)


def order_key(score: Float[Array, " *dims"]) -> Int32[Array, " *dims"]:
    """Map float scores to int32 keys with the same order; NaN becomes the lowest."""
    # Integers compare in one operation, floats with ties and NaN in several.
    score = score.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(score, jnp.int32)
    infinity = 0x7F800000
    magnitude = bits & 0x7FFFFFFF
    # The bits of negative floats descend as the floats ascend; both zeros become 0.
    key = jnp.where(bits < 0, -magnitude, magnitude)
    return jnp.where(magnitude > infinity, -infinity, key)


def _pair_indices(
    x: Shaped[Array, "batch tokens"],
) -> tuple[Int32[Array, "batch tokens tokens"], Int32[Array, "batch tokens tokens"]]:
    """Indices of both tokens in every pair."""
    shape = x.shape + x.shape[-1:]
    own_index = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    other_index = jax.lax.broadcasted_iota(jnp.int32, shape, 2)
    return own_index, other_index


@onnx_op
def count_kept_before(keep: TokenFlags) -> Int32[Array, "batch tokens"]:
    """Count kept tokens before every token."""
    if is_reference():
        return jnp.cumsum(keep, axis=1, dtype=jnp.int32) - keep.astype(jnp.int32)
    own_index, other_index = _pair_indices(keep)
    is_kept_before = keep[:, None, :] & (other_index < own_index)
    return jnp.sum(is_kept_before, axis=-1, dtype=jnp.int32)


@onnx_op
def index_kept_tokens(keep: TokenFlags) -> Int32[Array, "batch tokens"]:
    """Number kept tokens from 0; other tokens are negative."""
    if is_reference():
        return count_kept_before(keep) - jnp.where(keep, 0, keep.shape[1])
    own_index, other_index = _pair_indices(keep)
    # A dropped token adds a penalty to its own sum, in the same pass.
    is_own_drop = (other_index == own_index) & ~keep[:, None, :]
    penalty = jnp.where(is_own_drop, -keep.shape[1], 0)
    is_kept_before = keep[:, None, :] & (other_index < own_index)
    terms = is_kept_before.astype(jnp.int32) + penalty
    return jnp.sum(terms, axis=-1, dtype=jnp.int32)


def index_kept_or(
    keep: TokenFlags, otherwise: TokenIndices
) -> Int32[Array, "batch tokens"]:
    """`index_kept_tokens` for kept tokens, `otherwise` for the rest, in one pass."""
    own_index, other_index = _pair_indices(keep)
    is_kept_before = keep[:, None, :] & (other_index < own_index)
    own_otherwise = jnp.where(other_index == 0, otherwise[:, :, None], 0)
    terms = jnp.where(keep[:, :, None], is_kept_before.astype(jnp.int32), own_otherwise)
    return jnp.sum(terms, axis=-1, dtype=jnp.int32)


@onnx_op
def invert_order(
    position: TokenIndices, wanted: int | Int[Array, " wanted"]
) -> Int32[Array, "batch wanted"]:
    """Find the token at every wanted position.

    A missing position gives 0. A repeated position gives the sum of its tokens.

    wanted: positions, or a number m for the positions 0..m-1
    """
    wanted_positions = (
        jnp.arange(wanted) if isinstance(wanted, int) else jnp.asarray(wanted)
    )
    token = jnp.arange(position.shape[1], dtype=jnp.int32)[None, None, :]
    own_position = position[:, None, :]
    wanted_positions = wanted_positions.astype(jnp.int32)[None, :, None]
    token_if_there = jnp.where(own_position == wanted_positions, token, 0)
    return jnp.sum(token_if_there, axis=-1, dtype=jnp.int32)


@onnx_op
def pick_by_rank(
    ranks: TokenIndices, length: int, *values: Num[Array, "#batch tokens"]
) -> tuple[Num[Array, "batch {length}"], ...]:
    """Gather values at `invert_order(ranks, length)`, in one pass."""
    if not is_reference():
        # Without it XLA recomputes all ranks for every wanted index.
        ranks = jax.lax.optimization_barrier(ranks)
    wanted_ranks = jnp.arange(length, dtype=jnp.int32)[None, :, None]
    has_rank = ranks[:, None, :] == wanted_ranks
    picked_values = tuple(jnp.where(has_rank, value[:, None, :], 0) for value in values)
    return sum_arrays(picked_values, axis=2)


@onnx_op
def sum_arrays(arrays: Sequence[jax.Array], axis: int) -> tuple[jax.Array, ...]:
    """Sum several arrays of one shape along an axis, in one pass."""
    if is_reference():
        return tuple(jnp.sum(array, axis=axis) for array in arrays)

    def add(a: Sequence[Any], b: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(x + y for x, y in zip(a, b, strict=True))

    zeros = tuple(jnp.zeros((), array.dtype) for array in arrays)
    return jax.lax.reduce(tuple(arrays), zeros, add, (axis,))


@onnx_op
def gather_rows(
    x: Shaped[Array, "batch tokens *dims"], index: Int[Array, "#batch *places"]
) -> Shaped[Array, "batch ..."]:
    """Gather rows of x at indices that are at least 0, image by image.

    Returns [*index.shape, *dims].
    """
    if is_reference():
        return jax.vmap(lambda rows, indices: rows[indices])(x, index)
    batch, n = x.shape[:2]
    # One matrix of all rows: pairs (image, row) would be one more array in memory.
    first_rows = n * jnp.arange(batch, dtype=index.dtype)
    flat_index = index + first_rows.reshape(batch, *(1,) * (index.ndim - 1))
    flat_rows = x.reshape(batch * n, *x.shape[2:])
    return flat_rows.at[flat_index].get(mode="promise_in_bounds")


def mark_smallest(
    values: Float[Array, "*rows columns"], k: int
) -> Bool[Array, "*rows columns"]:
    """Mark the k smallest values per row, ties to the lower index, in k passes."""
    if is_reference():
        return jnp.argsort(jnp.argsort(values, stable=True)) < k
    index = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    is_marked = jnp.zeros(values.shape, bool)
    for _ in range(min(k, values.shape[-1])):
        unmarked_values = jnp.where(is_marked, jnp.inf, values)
        smallest_index = jnp.argmin(unmarked_values, axis=-1).astype(jnp.int32)
        is_marked |= index == smallest_index[..., None]
    return is_marked


def interleave_tokens(
    even: Shaped[Array, "batch even_tokens"], odd: Shaped[Array, "batch odd_tokens"]
) -> Shaped[Array, "batch tokens"]:
    """Interleave the values of even and of odd tokens."""
    batch, num_even = even.shape
    num_odd = odd.shape[1]
    odd = jnp.pad(odd, ((0, 0), (0, num_even - num_odd)))
    pairs = jnp.stack([even, odd], axis=-1)
    return pairs.reshape(batch, 2 * num_even)[:, : num_even + num_odd]
