"""Which tokens join which: the most similar partners, and the slots of their pairs."""

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.nodes import onnx_op
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
def find_partners(similarity, tokens):
    """Find every row's most similar token; ties go to the first token.

    similarity: [B, a, t], from `a` tokens to `tokens`; NaN counts as minus infinity
    tokens: [B or 1, t] int32
    Returns (`ranking.order_key` of the highest similarity [B, a], token [B, a]).
    """
    if is_reference():
        key = order_key(similarity)
        tokens = jnp.broadcast_to(tokens, (len(key), key.shape[2]))
        return jnp.max(key, axis=2), gather_rows(tokens, jnp.argmax(key, axis=2))
    order = jax.lax.broadcasted_iota(jnp.int32, similarity.shape, 2)
    tokens = jnp.broadcast_to(tokens[:, None, :], similarity.shape)
    start = (jnp.int32(-(2**31)), jnp.int32(2**31 - 1), jnp.int32(0))
    best, _, partner = _first_largest((order_key(similarity), order, tokens), start)
    return best, partner


def _first_largest(values, start):
    """Per row, the tuple with the largest first entry, in one pass over `values`.

    Of equal first entries, the smallest second entry wins.
    """

    def larger(a, b):
        a_wins = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))
        return tuple(jnp.where(a_wins, x, y) for x, y in zip(a, b, strict=True))

    return jax.lax.reduce(values, start, larger, (2,))


@onnx_op
def distance_to_earlier(alike, order):
    """Measure 1 minus the highest similarity to a token earlier in an order. -> [B, n].

    alike, order: as for `join_kept`; the first token's distance is 2
    """
    is_earlier = order[:, None, :] < order[:, :, None]
    return 1 - jnp.max(jnp.where(is_earlier, alike, -1.0), axis=-1)


@onnx_op
def join_kept(alike, order, n_out):
    """Send every token to the most similar of the first `n_out` tokens in an order.

    alike: [B, n, n] float32, similarities from -1 to 1
    order: [B, n] int32, ranks from 0; on a tie the first kept token wins
    Returns (slot [B, n] int32, similarity to the token kept there [B, n] float32). A
    kept token's slot is its rank, and its similarity 1.
    """
    # A kept token is its own partner, so the same pass finds its slot. A token that is
    # not kept is as dissimilar as NaN, so no token joins it.
    itself = jnp.eye(order.shape[1], dtype=bool)[None]
    kept = order < n_out
    alike = jnp.where(itself, 2.0, alike)
    alike = jnp.where(kept[:, None, :], alike, -3.0)
    slots = jnp.broadcast_to(order[:, None, :], alike.shape)
    alike = jnp.where(jnp.isnan(alike), -3.0, alike)
    if is_reference():
        best = jnp.max(alike, axis=2)
        slot = jnp.min(jnp.where(alike == best[:, :, None], slots, n_out), axis=2)
    else:
        best, slot = _first_largest((alike, slots), (jnp.float32(-3), jnp.int32(0)))
    return slot, jnp.minimum(best, 1.0)


def join_ranked(x, order, n_out, kept, size, all_x=None):
    """Keep the first `n_out` tokens in an order; the next ones up to `kept` join them.

    A joining token goes to the most similar kept token, and the rest is dropped.

    x, all_x: tokens, as for `all_cosines`; order: as for `join_kept`
    size: [B, n], attention sizes; a joining token's is multiplied by its cosine
    Returns (dest [B, n], size [B, n], SlotIndex or None).
    """
    n = order.shape[1]
    if is_reference() or (is_fast(x) and kept > n_out):
        # One product of all pairs gathers no tokens.
        dest, alike = join_kept(all_cosines(x, all_x), order, n_out)
        size = size * alike
        if kept < n:
            dropped = order >= kept
            dest = jnp.where(dropped, DROPPED, dest)
            size = jnp.where(dropped, 0.0, size)
        return dest, size, None
    tokens = invert_order(order, n)
    keep = tokens[:, :n_out]
    joining = tokens[:, n_out:kept]
    if kept == n_out:  # no token merges, so arrays would be empty
        dest = jnp.where(order < n_out, order, DROPPED)
        return dest, size, SlotIndex.one_token_each(keep)
    x = unit_vectors(x)
    alike = dot_products(gather_rows(x, joining), gather_rows(x, keep))
    slots = jnp.arange(n_out, dtype=jnp.int32)[None]
    _, target = find_partners(alike, slots)
    partner = gather_rows(keep, target)
    index = SlotIndex(keep, joining, target, partner)
    # Slots and attention sizes of tokens by their ranks, then in token order.
    dropped = ((0, 0), (0, n - kept))
    slots = [jnp.broadcast_to(slots, keep.shape), target]
    slots = jnp.pad(jnp.concatenate(slots, 1), dropped, constant_values=DROPPED)
    joined = gather_rows(size, joining) * jnp.max(alike, axis=-1)
    sizes = jnp.concatenate([gather_rows(size, keep), joined], 1)
    sizes = jnp.pad(sizes, dropped)
    return gather_rows(slots, order), gather_rows(sizes, order), index


def join_sides(order, partner, merges, first, in_order, x):
    """Merge the first `merges` tokens of side A into their partners on side B.

    Side A holds the tokens first, first + 2, ..; side B holds the rest of x [B, n, D].

    order, partner: [B, |A|] int32, ranks of A's tokens from 0, and tokens of B
    in_order: whether A's staying tokens keep their order; False: they are by rank
    Returns (dest [B, n], SlotIndex); slots are A's staying tokens, then B's tokens.
    """
    n = x.shape[1]
    sources = jnp.arange(first, n, 2, dtype=jnp.int32)[None]
    targets = jnp.arange(1 - first, n, 2, dtype=jnp.int32)[None]
    leaves = order < merges
    n_staying = sources.shape[1] - merges
    if in_order:
        slot_of_staying = index_kept_tokens(~leaves)
        staying = invert_order(slot_of_staying, n_staying)
    else:
        slot_of_staying = order - merges
        staying = invert_order(order, merges + np.arange(n_staying))
    # A token's number on side B is half its index. `//` would be nine operations.
    slot_of = n_staying + jax.lax.div(partner, jnp.int32(2))
    sources = jnp.broadcast_to(sources, (order.shape[0], sources.size))
    targets = jnp.broadcast_to(targets, (order.shape[0], targets.size))
    slots_a = jnp.where(leaves, slot_of, slot_of_staying)
    slots_b = n_staying + targets // 2
    absorbed, partner, target = pick_by_rank(order, merges, sources, partner, slot_of)
    keep = jnp.concatenate([first + 2 * staying, targets], axis=1)
    index = SlotIndex(keep, absorbed, target, partner)

    def by_token(of_a, of_b):
        return interleave_tokens(of_b, of_a) if first else interleave_tokens(of_a, of_b)

    dest = by_token(slots_a, slots_b)
    if is_latency_bound(x) and in_order:
        keeps_order = by_token(~leaves, jnp.zeros_like(slots_b, bool))
        dest = index_kept_or(keeps_order, by_token(slot_of, slots_b))
    elif is_latency_bound(x):
        dest = jax.lax.optimization_barrier(dest)
    return dest, index
