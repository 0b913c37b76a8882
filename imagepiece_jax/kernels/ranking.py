"""Ranking, counting and picking tokens, by comparing all pairs.

Nothing sorts, scatters or accumulates along an axis: a comparison of all pairs is one
kernel on a GPU, and every compiler for phones and browsers has it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Num, Shaped

from imagepiece_jax.kernels import forms
from imagepiece_jax.kernels.array_shapes import TokenFlags, TokenIndices, TokenValues


def rank_tokens(score: TokenValues) -> Int32[Array, "batch tokens"]:
    """Rank tokens from 0 by falling score, ties to the lower index, NaN last."""
    return _rank(_without_nan(score))


def distance_to_higher(
    cosines: Float[Array, "batch tokens tokens"], score: TokenValues
) -> TokenValues:
    """Subtract the highest cosine to a token that `rank_tokens` ranks higher from 1.

    The first token's distance is 2.
    """
    cosines_to_higher = _where_ahead(_without_nan(score), cosines, -1.0)
    return 1 - jnp.max(cosines_to_higher, axis=-1)


def rank_rows(
    values: Float[Array, "batch tokens columns"],
) -> tuple[Int32[Array, "batch tokens"], Int32[Array, "batch tokens"]]:
    """(ranks of tokens by their largest value, the first column that has it)."""
    largest, column = find_first_largest(values)
    return _rank(largest), column


def _rank(score):
    """`rank_tokens` without NaN, whose replacement is one more kernel on a GPU."""
    return jnp.sum(_where_ahead(score, 1, 0), axis=-1, dtype=jnp.int32)


def _where_ahead(score, ahead, behind):
    """`ahead` where a pair's second token ranks before its first; else `behind`."""
    first_score = score[:, :, None]  # of [batch, tokens]; a pair is (row, column)
    second_score = score[:, None, :]
    by_index = jnp.where(_is_earlier(score.shape[1]), ahead, behind)  # for equal scores
    by_score = jnp.where(second_score > first_score, ahead, by_index)
    return jnp.where(second_score >= first_score, by_score, behind)


def _without_nan(values):
    """Minus infinity in place of NaN."""
    return jnp.where(jnp.isnan(values), -jnp.inf, values)


def _is_earlier(n):
    """Whether the second token of a pair stands before the first, [1, n, n]."""
    token = jnp.arange(n)
    return (token[None, :] < token[:, None])[None]


def find_first_largest(
    values: Float[Array, "*rows columns"],
) -> tuple[Float[Array, "*rows"], Int32[Array, "*rows"]]:
    """(largest value, its first column) per row; NaN counts as minus infinity."""
    column = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    return reduce_largest(_without_nan(values), column)


def reduce_largest(
    values: Float[Array, "*rows columns"], number: Int32[Array, "*rows columns"]
) -> tuple[Float[Array, "*rows"], Int32[Array, "*rows"]]:
    """(largest value, the lowest number that has it) per row, without NaN.

    number: below the number of columns
    """
    last_axis = values.ndim - 1
    highest_number = np.int32(values.shape[last_axis])
    if not forms.uses_fast_forms():
        largest = jnp.max(values, axis=last_axis)
        is_largest = values == largest[..., None]
        number_or_end = jnp.where(is_largest, number, highest_number)
        return largest, jnp.min(number_or_end, axis=last_axis)

    def pick_larger(left, right):  # of two (value, number)
        is_left = (left[0] > right[0]) | ((left[0] == right[0]) & (left[1] < right[1]))
        value = jnp.where(is_left, left[0], right[0])
        return value, jnp.where(is_left, left[1], right[1])

    # One kernel on a GPU; the definition takes two.
    below_all = (np.asarray(-np.inf, values.dtype), highest_number)
    values_and_numbers = (jax.lax.stop_gradient(values), number)
    return jax.lax.reduce(values_and_numbers, below_all, pick_larger, (last_axis,))


def count_kept_before(
    keep: TokenFlags, tokens: Int[Array, "batch listed"] | None = None
) -> Int32[Array, "batch listed"]:
    """Count kept tokens before every one of `tokens`; None: before every token."""
    every_token = jnp.arange(keep.shape[1], dtype=jnp.int32)[None]
    tokens = every_token if tokens is None else tokens
    kept_ones = keep.astype(jnp.int32)[:, None, :]
    ones_before = jnp.where(every_token[:, None, :] < tokens[:, :, None], kept_ones, 0)
    return jnp.sum(ones_before, axis=-1, dtype=jnp.int32)


def index_kept_tokens(keep: TokenFlags) -> Int32[Array, "batch tokens"]:
    """Number kept tokens from 0; other tokens are -1."""
    # One sum without a choice: all else would be one more kernel on a GPU. The diagonal
    # adds num_tokens to a kept token's sum; every other token's sum stays below.
    num_tokens = keep.shape[1]
    diagonal = num_tokens * jnp.eye(num_tokens, dtype=jnp.int32)[None]
    terms = jnp.where(keep[:, None, :], _is_earlier(num_tokens) + diagonal, 0)
    return jnp.maximum(jnp.sum(terms, axis=2, dtype=jnp.int32) - num_tokens, -1)


def invert_order(
    position: TokenIndices, wanted: int | Int[Array | np.ndarray, " wanted"]
) -> Int32[Array, "batch wanted"]:
    """Find the token at every wanted position.

    A missing position gives 0. A repeated position gives the sum of its tokens.

    wanted: positions, or a number m for the positions 0..m-1
    """
    token = jnp.arange(position.shape[1], dtype=jnp.int32)[None]
    return pick_by_rank(position, wanted, token)[0]


def pick_by_rank(
    ranks: TokenIndices,
    wanted: int | Int[Array | np.ndarray, " wanted"],
    *values: Num[Array, "#batch tokens"],
) -> tuple[Num[Array, "batch wanted"], ...]:
    """Gather values at `invert_order(ranks, wanted)`."""
    wanted_ranks = np.arange(wanted) if isinstance(wanted, int) else wanted
    rank_column = jnp.asarray(wanted_ranks, jnp.int32)[None, :, None]
    has_rank = ranks[:, None, :] == rank_column  # [batch, wanted, tokens]
    return tuple(
        jnp.sum(jnp.where(has_rank, value[:, None, :], 0), axis=2, dtype=value.dtype)
        for value in values
    )


def gather_rows(
    x: Shaped[Array, "batch tokens *dims"],
    index: Int[Array, "#batch *places"],
    unique: bool = False,
) -> Shaped[Array, "batch ..."]:
    """Gather rows of x at indices that are at least 0, image by image.

    unique: no image repeats an index, so the gradient is one pass without sums
    Returns rows [`*index.shape`, `*dims`].
    """
    batch_size, num_rows = x.shape[:2]
    if forms.uses_reference_forms():
        return _gather_by_product(x, index)
    # One matrix of all rows: pairs (image, row) would be one more array in memory.
    first_rows = num_rows * jnp.arange(batch_size, dtype=index.dtype)
    flat_index = index + first_rows.reshape(batch_size, *(1,) * (index.ndim - 1))
    flat_rows = x.reshape(batch_size * num_rows, *x.shape[2:])
    return flat_rows.at[flat_index].get(mode="promise_in_bounds", unique_indices=unique)


def _gather_by_product(x, index):
    """`gather_rows` by rows of 0 and 1: not every compiler gathers computed indices."""
    row_shape = (*index.shape[1:], *x.shape[2:])  # x: [batch, rows, *dims]
    flat_index = index.reshape(index.shape[0], -1, 1)  # [batch or 1, indices, 1]
    is_row = flat_index == jnp.arange(x.shape[1], dtype=index.dtype)[None, None]
    if x.ndim == 2:  # single numbers, often integers, keep their type
        rows = jnp.sum(jnp.where(is_row, x[:, None, :], 0), axis=2, dtype=x.dtype)
    else:
        flat_x = x.reshape(*x.shape[:2], -1).astype(jnp.float32)
        rows = jnp.einsum(
            "bmn,bnd->bmd", is_row.astype(jnp.float32), flat_x, precision="highest"
        )
    return rows.astype(x.dtype).reshape(x.shape[0], *row_shape)


def mark_smallest(
    values: Float[Array, "*rows columns"], count: int
) -> Bool[Array, "*rows columns"]:
    """Mark the `count` smallest values per row, ties to the lower index."""
    column = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    is_marked = jnp.zeros(values.shape, bool)
    for _ in range(min(count, values.shape[-1])):
        _, smallest_column = find_first_largest(jnp.where(is_marked, -jnp.inf, -values))
        is_marked |= column == smallest_column[..., None]
    return is_marked


def interleave_tokens(
    even: Shaped[Array, "batch even_tokens"], odd: Shaped[Array, "batch odd_tokens"]
) -> Shaped[Array, "batch tokens"]:
    """Interleave the values of even and of odd tokens."""
    batch_size, num_even = even.shape
    num_odd = odd.shape[1]
    padded_odd = jnp.pad(odd, ((0, 0), (0, num_even - num_odd)))
    pairs = jnp.stack([even, padded_odd], axis=-1)  # [batch, even_tokens, 2]
    return pairs.reshape(batch_size, 2 * num_even)[:, : num_even + num_odd]
