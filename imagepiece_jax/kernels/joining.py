"""Which tokens join which."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from imagepiece_jax.kernels import ranking, similarity
from imagepiece_jax.kernels.array_shapes import (
    AllRows,
    TokenIndices,
    TokenRows,
    TokenValues,
)
from imagepiece_jax.kernels.merging import DROPPED


def join_kept(
    cosines: Float[Array, "batch tokens tokens"], ranks: TokenIndices, n_out: int
) -> tuple[TokenIndices, TokenValues]:
    """Send every token to the most similar of the first `n_out` tokens by rank.

    ranks: from 0; on a tie the first kept token wins
    Returns (slot, cosine to the token kept there). A kept token's slot is its rank, and
    its cosine 1.
    """
    # A kept token is its own partner, so the same pass finds its slot. A token that is
    # not kept is as dissimilar as NaN, so no token joins it.
    num_tokens = ranks.shape[1]
    cosines = jnp.where(jnp.eye(num_tokens, dtype=bool)[None], 2.0, cosines)
    cosines = jnp.where(jnp.isnan(cosines), -3.0, cosines)
    cosines = jnp.where(ranks[:, None, :] < n_out, cosines, -3.0)
    numbers = jnp.broadcast_to(ranks[:, None, :], cosines.shape)
    best_cosine, slot = ranking.reduce_largest(cosines, numbers)
    return slot, jnp.minimum(best_cosine, 1.0)


def join_ranked(
    x: TokenRows,
    ranks: TokenIndices,
    n_out: int,
    num_used: int,
    size: TokenValues,
    all_x: AllRows | None = None,
) -> tuple[TokenIndices, TokenValues]:
    """Keep the first `n_out` tokens by rank; the next up to `num_used` join them.

    A joining token goes to the most similar kept token, and the rest is dropped.

    ranks: from 0
    size: attention sizes; a joining token's is multiplied by its cosine
    all_x: the same tokens with the prefix in front; None: x alone
    Returns (slot_of_token, size).
    """
    if num_used == n_out:
        return jnp.where(ranks < n_out, ranks, DROPPED), size
    slot_of_token, cosine = join_kept(similarity.all_cosines(x, all_x), ranks, n_out)
    size = size * cosine
    if num_used < ranks.shape[1]:
        is_dropped = ranks >= num_used
        slot_of_token = jnp.where(is_dropped, DROPPED, slot_of_token)
        size = jnp.where(is_dropped, 0.0, size)
    return slot_of_token, size


def join_sides(
    ranks: Int32[Array, "batch side_a"],
    partners: Int32[Array, "batch side_a"],
    num_merges: int,
    num_tokens: int,
    first_token: int,
    keeps_order: bool,
) -> Int32[Array, "batch tokens"]:
    """Merge the first `num_merges` tokens of side A into their partners on side B.

    Side A holds first_token, first_token + 2, ..; side B holds the rest.

    ranks: ranks of A's tokens from 0
    partners: numbers on side B
    keeps_order: whether A's staying tokens keep their order; False: they are by rank
    Returns slots: A's staying tokens, then B's tokens.
    """
    is_merged = ranks < num_merges
    num_staying = ranks.shape[1] - num_merges
    slots = ranks - num_merges
    if keeps_order:
        slots = ranking.count_kept_before(~is_merged)
    slots_a = jnp.where(is_merged, num_staying + partners, slots)
    slots_b = jnp.arange(num_staying, num_tokens - num_merges, dtype=jnp.int32)
    slots_b = jnp.broadcast_to(slots_b, (ranks.shape[0], slots_b.size))
    if first_token:
        return ranking.interleave_tokens(slots_b, slots_a)
    return ranking.interleave_tokens(slots_a, slots_b)
