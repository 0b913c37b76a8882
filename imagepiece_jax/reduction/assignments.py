"""Assignments as reducers make them: who stays, who joins whom, who is dropped."""

import jax.numpy as jnp

from imagepiece_jax.common.nodes import node
from imagepiece_jax.reduction.merging import mean_coordinates, slot_index
from imagepiece_jax.reduction.ops import (
    cosine,
    count_before,
    gather_rows,
    invert,
    largest,
    order_key,
    pick,
    place_among,
    rank,
    sums,
)
from imagepiece_jax.reduction.tokens import (
    DROPPED,
    Assignment,
    SlotIndex,
    TokenState,
    compose,
)


def keep_highest(score, n_out):
    """Assignment that keeps the `n_out` highest scores, in spatial order. [B, n]."""
    place = place_among(rank(score) < n_out)
    return Assignment(
        dest=jnp.maximum(place, DROPPED),
        index=SlotIndex.of_kept(invert(place, n_out)),
        n_out=n_out,
    )


def keep_and_sum(keep, weight, n_out):
    """Assignment that keeps the `n_out - 1` tokens of `keep` [B, n], in spatial order.

    The last slot is the sum of all others, by `weight` [B, n].
    """
    last = n_out - 1
    dest = jnp.where(keep, count_before(keep), last)
    return Assignment(
        dest=dest,
        weight=jnp.where(keep, 1.0, weight),
        index=slot_index(dest, n_out, groups=1),
        n_out=n_out,
        mean=False,
    )


@node
def find_partners(similarity, tokens):
    """Similarity [B, a, t] to `tokens` [B or 1, t] -> best [B, a], its token [B, a].

    `best` is a key (`ops.order_key`); of equally similar tokens the first in `tokens`.
    """
    order = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] << 16
    code = jnp.broadcast_to((order + tokens)[:, None, :], similarity.shape)
    best, code = largest(order_key(similarity), code)
    return best, code & 0xFFFF


def merge_in_place(absorbed, partners, counts):
    """Assignment in which `absorbed` go to their partners and all others keep order.

    absorbed, partners: [B, r], distinct tokens that leave, and tokens that stay.
    """
    index = jnp.arange(counts.n_in, dtype=jnp.int32)[None]

    def before(tokens):  # which of the absorbed stand before each of them
        return (absorbed[:, None, :] < tokens[:, :, None]).astype(jnp.int32)

    behind, ahead = sums((before(partners), before(absorbed)), axis=2)
    target, followed = partners - behind, absorbed - ahead
    leaves = absorbed[:, None, :] == index[:, :, None]
    joined = jnp.max(jnp.where(leaves, target[:, None, :], DROPPED), axis=-1)
    stays = index - jnp.sum(before(index), axis=-1)
    place = jnp.arange(counts.n_out, dtype=jnp.int32)[None]
    skipped = followed[:, None, :] <= place[:, :, None]
    keep = place + jnp.sum(skipped, axis=-1, dtype=jnp.int32)
    return Assignment(
        dest=jnp.where(joined == DROPPED, stays, joined),
        index=SlotIndex(
            keep=keep,
            absorbed=absorbed,
            target=target,
            groups=target,
            group_keep=partners,
        ),
        n_out=counts.n_out,
    )


def keep_and_join(keep, absorbed, target, n):
    """Assignment whose slots keep one token each and absorb others; the rest drops.

    keep: [B, n_out] tokens in the order of the slots; absorbed: [B, e] other tokens,
    all distinct, target: [B, e] the slots that they join; n tokens in all.
    """
    n_out = keep.shape[1]
    slots = jnp.broadcast_to(jnp.arange(n_out, dtype=jnp.int32), keep.shape)
    tokens, slots = (
        jnp.concatenate(pair, axis=1) for pair in ((keep, absorbed), (slots, target))
    )
    holds = tokens[:, None, :] == jnp.arange(n, dtype=jnp.int32)[None, :, None]
    return Assignment(
        dest=jnp.max(jnp.where(holds, slots[:, None, :], DROPPED), axis=-1),
        index=SlotIndex(
            keep=keep,
            absorbed=absorbed,
            target=target,
            groups=target,
            group_keep=gather_rows(keep, target),
        ),
        n_out=n_out,
    )


def join_most_similar(metric, sources, targets, joining=None):
    """(joining tokens, their partners): each source's most similar target.

    metric [B, n, d], sources [B, a] and targets [B, t] tokens -> [B, r] twice.
    joining: how many sources join, those most similar to their partner; None: all, in
    the order of `sources`. Equally similar: the first of `targets`, or `sources`.
    """
    sides = (gather_rows(metric, tokens) for tokens in (sources, targets))
    best, partners = find_partners(cosine(*sides), targets)
    if joining is None:
        return sources, partners
    return pick(rank(best), joining, sources, partners)


def after_kernel(state, moved, counts):
    """(state, Assignment) from what a fused kernel gives: x, sizes and dest."""
    x, size, dest = moved
    result = Assignment(dest=dest, n_out=counts.n_out)
    source = None if state.source is None else compose(dest, state.source)
    state = TokenState(
        x=x,
        size=size,
        source=source,
        coordinates=mean_coordinates(state, result),
        num_prefix=state.num_prefix,
    )
    return state, result
