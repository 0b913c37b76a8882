"""Which tokens join which: the most similar partners, and the slots of their pairs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from imagepiece_jax.common.nodes import onnx_op
from imagepiece_jax.kernels.array_shapes import (
    AllRows,
    TokenIndices,
    TokenRows,
    TokenValues,
)
from imagepiece_jax.kernels.choice import is_fast, is_latency_bound, is_reference
from imagepiece_jax.kernels.merging import DROPPED, SlotIndex
from imagepiece_jax.kernels.ranking import (
    gather_rows,
    index_kept_or,
    index_kept_tokens,
    interleave_tokens,
    invert_order,
    order_key,
    pick_by_rank,
)
from imagepiece_jax.kernels.similarity import all_cosines, dot_products, unit_vectors


@onnx_op
def find_partners(
    similarity: Float[Array, "batch rows tokens"], tokens: Int[Array, "#batch tokens"]
) -> tuple[Int32[Array, "batch rows"], Int32[Array, "batch rows"]]:
    """Find every row's most similar token; ties go to the first token.

    similarity: to `tokens`; NaN counts as minus infinity
    Returns (`ranking.order_key` of the highest similarity, token).
    """
    if is_reference():
        key = order_key(similarity)
        tokens = jnp.broadcast_to(tokens, (len(key), key.shape[2]))
        return jnp.max(key, axis=2), gather_rows(tokens, jnp.argmax(key, axis=2))
    column = jax.lax.broadcasted_iota(jnp.int32, similarity.shape, 2)
    tokens = jnp.broadcast_to(tokens[:, None, :], similarity.shape)
    start = (jnp.int32(-(2**31)), jnp.int32(2**31 - 1), jnp.int32(0))
    arrays = (order_key(similarity), column, tokens)
    best_key, _, partner = _find_first_largest(arrays, start)
    return best_key, partner


def _find_first_largest(
    arrays: Sequence[jax.Array], start: Sequence[jax.Array]
) -> Sequence[jax.Array]:
    """Per row, the tuple with the largest first entry, in one pass over `arrays`.

    Of equal first entries, the smallest second entry wins.

    arrays: [B, rows, columns]
    start: a scalar per array, the tuple that every row starts from
    """

    def pick_larger(a: Sequence[Any], b: Sequence[Any]) -> tuple[Any, ...]:
        a_wins = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))
        return tuple(jnp.where(a_wins, x, y) for x, y in zip(a, b, strict=True))

    return jax.lax.reduce(arrays, start, pick_larger, (2,))


@onnx_op
def distance_to_earlier(
    similarity: Float[Array, "batch tokens tokens"], ranks: TokenIndices
) -> TokenValues:
    """Subtract the highest similarity to a token of lower rank from 1.

    ranks: from 0; the first token's distance is 2
    """
    is_earlier = ranks[:, None, :] < ranks[:, :, None]
    return 1 - jnp.max(jnp.where(is_earlier, similarity, -1.0), axis=-1)


@onnx_op
def join_kept(
    similarity: Float[Array, "batch tokens tokens"], ranks: TokenIndices, n_out: int
) -> tuple[TokenIndices, TokenValues]:
    """Send every token to the most similar of the first `n_out` tokens by rank.

    similarity: from -1 to 1
    ranks: from 0; on a tie the first kept token wins
    Returns (slot, similarity to the token kept there). A kept token's slot is its rank,
    and its similarity 1.
    """
    # A kept token is its own partner, so the same pass finds its slot. A token that is
    # not kept is as dissimilar as NaN, so no token joins it.
    is_itself = jnp.eye(ranks.shape[1], dtype=bool)[None]
    is_kept = ranks < n_out
    similarity = jnp.where(is_itself, 2.0, similarity)
    similarity = jnp.where(is_kept[:, None, :], similarity, -3.0)
    slots = jnp.broadcast_to(ranks[:, None, :], similarity.shape)
    similarity = jnp.where(jnp.isnan(similarity), -3.0, similarity)
    if is_reference():
        best_similarity = jnp.max(similarity, axis=2)
        is_best = similarity == best_similarity[:, :, None]
        slot = jnp.min(jnp.where(is_best, slots, n_out), axis=2)
    else:
        start = (jnp.float32(-3), jnp.int32(0))
        best_similarity, slot = _find_first_largest((similarity, slots), start)
    return slot, jnp.minimum(best_similarity, 1.0)


def join_ranked(
    x: TokenRows,
    ranks: TokenIndices,
    n_out: int,
    num_used: int,
    size: TokenValues,
    all_x: AllRows | None = None,
) -> tuple[TokenIndices, TokenValues, SlotIndex | None]:
    """Keep the first `n_out` tokens by rank; the next up to `num_used` join them.

    A joining token goes to the most similar kept token, and the rest is dropped.

    ranks: from 0
    size: attention sizes; a joining token's is multiplied by its cosine
    all_x: x behind the prefix; None: x alone
    Returns (slot_of_token, size, index).
    """
    if is_reference() or (is_fast(x) and num_used > n_out):
        # One product of all pairs gathers no tokens.
        return *_join_by_all_pairs(x, ranks, n_out, num_used, size, all_x), None
    ranked_tokens = invert_order(ranks, ranks.shape[1])
    kept_tokens = ranked_tokens[:, :n_out]
    joining_tokens = ranked_tokens[:, n_out:num_used]
    if num_used == n_out:  # no token merges, so arrays would be empty
        slot_of_token = jnp.where(ranks < n_out, ranks, DROPPED)
        return slot_of_token, size, SlotIndex.one_token_each(kept_tokens)
    return _join_gathered(x, ranks, kept_tokens, joining_tokens, size)


def _join_by_all_pairs(
    x: TokenRows,
    ranks: TokenIndices,
    n_out: int,
    num_used: int,
    size: TokenValues,
    all_x: AllRows | None,
) -> tuple[TokenIndices, TokenValues]:
    """`join_ranked` by the product of all pairs of tokens: (slot_of_token, size)."""
    slot_of_token, similarity = join_kept(all_cosines(x, all_x), ranks, n_out)
    size = size * similarity
    if num_used < ranks.shape[1]:
        is_dropped = ranks >= num_used
        slot_of_token = jnp.where(is_dropped, DROPPED, slot_of_token)
        size = jnp.where(is_dropped, 0.0, size)
    return slot_of_token, size


def _join_gathered(
    x: TokenRows,
    ranks: TokenIndices,
    kept_tokens: Int32[Array, "batch slots"],
    joining_tokens: Int32[Array, "batch joining"],
    size: TokenValues,
) -> tuple[TokenIndices, TokenValues, SlotIndex]:
    """`join_ranked` by a product of the kept and the joining tokens alone."""
    x = unit_vectors(x)
    similarity = dot_products(
        gather_rows(x, joining_tokens), gather_rows(x, kept_tokens)
    )
    slots = jnp.arange(kept_tokens.shape[1], dtype=jnp.int32)[None]
    _, target_slots = find_partners(similarity, slots)
    partner_tokens = gather_rows(kept_tokens, target_slots)
    index = SlotIndex(kept_tokens, joining_tokens, target_slots, partner_tokens)
    # Slots and attention sizes of tokens by their ranks, then in token order.
    num_dropped = ranks.shape[1] - kept_tokens.shape[1] - joining_tokens.shape[1]
    padding = ((0, 0), (0, num_dropped))
    ranked_slots = [jnp.broadcast_to(slots, kept_tokens.shape), target_slots]
    ranked_slots = jnp.concatenate(ranked_slots, 1)
    ranked_slots = jnp.pad(ranked_slots, padding, constant_values=DROPPED)
    joining_sizes = gather_rows(size, joining_tokens) * jnp.max(similarity, axis=-1)
    ranked_sizes = jnp.concatenate([gather_rows(size, kept_tokens), joining_sizes], 1)
    ranked_sizes = jnp.pad(ranked_sizes, padding)
    return gather_rows(ranked_slots, ranks), gather_rows(ranked_sizes, ranks), index


def join_sides(
    ranks: Int32[Array, "batch side_a"],
    partners: Int32[Array, "batch side_a"],
    num_merges: int,
    first_token: int,
    keeps_order: bool,
    x: TokenRows,
) -> tuple[Int32[Array, "batch tokens"], SlotIndex]:
    """Merge the first `num_merges` tokens of side A into their partners on side B.

    Side A holds first_token, first_token + 2, ..; side B holds the rest of x.

    ranks: ranks of A's tokens from 0
    partners: tokens of B
    keeps_order: whether A's staying tokens keep their order; False: they are by rank
    Returns (slot_of_token, index); slots are A's staying tokens, then B's tokens.
    """
    num_tokens = x.shape[1]
    side_a = jnp.arange(first_token, num_tokens, 2, dtype=jnp.int32)[None]
    side_b = jnp.arange(1 - first_token, num_tokens, 2, dtype=jnp.int32)[None]
    is_merged = ranks < num_merges
    num_staying = side_a.shape[1] - num_merges
    staying_slots, staying_numbers = _number_staying(
        ranks, is_merged, num_merges, keeps_order
    )
    # A token's number on side B is half its index. `//` would be nine operations.
    partner_slots = num_staying + jax.lax.div(partners, jnp.int32(2))
    side_a = jnp.broadcast_to(side_a, (ranks.shape[0], side_a.size))
    side_b = jnp.broadcast_to(side_b, (ranks.shape[0], side_b.size))
    slots_a = jnp.where(is_merged, partner_slots, staying_slots)
    slots_b = num_staying + side_b // 2
    absorbed_tokens, partner_tokens, target_slots = pick_by_rank(
        ranks, num_merges, side_a, partners, partner_slots
    )
    kept_tokens = jnp.concatenate([first_token + 2 * staying_numbers, side_b], axis=1)
    index = SlotIndex(kept_tokens, absorbed_tokens, target_slots, partner_tokens)

    def interleave(a: jax.Array, b: jax.Array) -> jax.Array:
        return interleave_tokens(b, a) if first_token else interleave_tokens(a, b)

    slot_of_token = interleave(slots_a, slots_b)
    # The same slots by one count over all tokens, for small arrays.
    if is_latency_bound(x) and keeps_order:
        is_staying = interleave(~is_merged, jnp.zeros_like(slots_b, bool))
        slot_of_token = index_kept_or(is_staying, interleave(partner_slots, slots_b))
    elif is_latency_bound(x):
        slot_of_token = jax.lax.optimization_barrier(slot_of_token)
    return slot_of_token, index


def _number_staying(
    ranks: Int32[Array, "batch side_a"],
    is_merged: Bool[Array, "batch side_a"],
    num_merges: int,
    keeps_order: bool,
) -> tuple[Int32[Array, "batch side_a"], Int32[Array, "batch staying"]]:
    """Number side A's staying tokens: (slots, negative if merged; tokens by slot)."""
    num_staying = ranks.shape[1] - num_merges
    if keeps_order:
        slots = index_kept_tokens(~is_merged)
        return slots, invert_order(slots, num_staying)
    staying_ranks = num_merges + np.arange(num_staying)
    return ranks - num_merges, invert_order(ranks, staying_ranks)
