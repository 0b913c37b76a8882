"""Reducers that several methods use, and functions that make Assignments.

A reducer reads `ReducerInputs` and `StepCounts`, and returns which tokens leave or
merge: as an `Assignment`, a `Mixing`, or in masked training a `Masking`.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.nodes import node
from imagepiece_jax.reduction import ops
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.state import DROPPED, Assignment, SlotIndex

METRICS = ("key", "query", "value", "token")  # what a reducer may compare
# Scores that rank tokens: {name: the field of ReducerInputs that it reads}. "auto"
# reads class attention; `Method.for_model` replaces it in models without class token.
SCORES = {
    "auto": "cls_attn",
    "class": "cls_attn",
    "received": "attn_columns",
    "energy": "key",
    "shift": "shift",
    "probe": "probe",
}


class Reducer:
    """Base of all reducers: frozen dataclasses, or Flax modules where they learn.

    Called as reducer(taps, counts, train).
    """

    # The fields of ReducerInputs that the reducer reads: metric, key, cls_attn,
    # attn_columns, shift, probe and rng are there only where it names them.
    needs: ClassVar[frozenset[str]] = frozenset()
    # The feature to compare, one of METRICS; None: the reducer compares none.
    metric = None

    @property
    def reads(self) -> frozenset[str]:
        """The scores and projections that attention has to compute for this reducer."""
        names = self.needs & {"cls_attn", "attn_columns", "shift", "key"}
        if "metric" in self.needs and self.metric != "token":
            names |= {self.metric}
        return frozenset(names)

    def extra_macs(self, n_in: int, embed_dim: int, num_heads: int) -> int:
        """MACs of the reducer itself, for one image of `n_in` image tokens."""
        return 0

    def draws(self, counts, train: bool) -> bool:
        """Whether the reducer draws random numbers, by its `rng`, in this call."""
        return "rng" in self.needs

    def check_fits(self, grid: tuple[int, int] | None, counts: StepCounts):
        """Check that the reducer can reduce these tokens.

        grid: (height, width); None where an earlier reduction left no grid
        counts: the numbers of the step
        """


class MaskingReducer(Reducer):
    """Base of reducers that draw a random mask in plans that remove no tokens."""

    needs = frozenset({"rng"})

    def draws(self, counts, train):
        return counts.n_out >= counts.n_in


@dataclasses.dataclass(frozen=True)
class Ranking(Reducer):
    """Base of reducers that rank tokens by a score, one of SCORES.

    "class": the attention of the class token.
    "received": the mean attention that a token receives.
    "energy": how unlike the others a token is (PiToMe, Tran et al. 2024).
    "shift": how far attention moves a token (Representation Shift, Choi et al. 2025).
    "probe": the attention of the probe in the model's attention pool.

    Scores are positive and add up to at most 1; important tokens have high ones.
    """

    score: str = dataclasses.field(default="auto", kw_only=True)

    @property
    def needs(self):
        names = {SCORES[self.score]}
        if self.metric:
            names.add("metric")
        return frozenset(names)

    def scores(self, taps, counts):
        """The scores [B, n] float32.

        Masked tokens have infinity: what merges the lowest never takes them. So the
        highest are not to be kept in masked training.
        """
        score = getattr(taps, SCORES[self.score])
        if self.score == "energy":
            live = None
            if taps.mask is not None:
                live = (taps.mask > 0.5).astype(jnp.float32)
            margin = 0.75 * (1 - counts.progress)  # falls with the depth
            score = ops.uniqueness(score, margin, live)
        if taps.mask is None:
            return score
        return jnp.where(taps.mask > 0.5, score, jnp.inf)


@dataclasses.dataclass(frozen=True)
class TopK(Ranking):
    """Keep the tokens of the highest scores, in spatial order.

    fuse: whether the last of the `n_out` tokens is the sum of the others, weighted by
        their scores, as in EViT (Liang et al. 2022); its gradient reaches the scores
    """

    fuse: bool = False

    def __call__(self, taps, counts, train=False):
        score = self.scores(taps, counts)
        if not self.fuse:
            return keep_highest(score, counts.n_out)
        keep = ops.rank(score) < counts.n_out - 1
        return keep_and_sum(keep, score, counts.n_out)


@dataclasses.dataclass(frozen=True)
class Bipartite(Reducer):
    """Merge the most similar pairs between every other token and the rest (ToMe).

    The tokens at even positions, prefix included, are side A, the others side B; the
    tokens of A whose best partner in B is most similar are merged into it. The prefix
    takes no part. The slots are the rest of A, then B, so that the next split by
    position mixes the two (Bolya et al. 2023, section 3).
    """

    metric: str = "key"
    needs = frozenset({"metric"})

    def __call__(self, taps, counts, train=False):
        merges = counts.n_in - counts.n_out
        prefix = taps.num_prefix
        # Number of the first image token on side A: positions count the prefix, too.
        first = prefix % 2
        sources = jnp.arange(first, counts.n_in, 2, dtype=jnp.int32)[None]
        targets = jnp.arange(1 - first, counts.n_in, 2, dtype=jnp.int32)[None]
        metric = jax.lax.stop_gradient(taps.metric)
        short = ops.is_short(taps.x)
        if short:
            if self.metric == "key" and taps.all_keys is not None:
                metric = taps.all_keys
            alike = ops.cosine(metric)[:, -counts.n_in :, -counts.n_in :]
            similarity = alike[:, first::2, 1 - first :: 2]
        else:
            # Scaled to length 1 as one array: for a GPU a kernel, of two sides several.
            metric = ops.unit(metric)
            similarity = ops.products(metric[:, first::2], metric[:, 1 - first :: 2])
        best, partner = find_partners(similarity, targets)
        order = ops.rank(best)  # [B, |A|]
        leaves = order < merges
        # Slots of the tokens of A that stay, and which tokens of A these are.
        rest = sources.shape[1] - merges
        if prefix:  # in their order
            slot_of_staying = ops.place_among(~leaves)
            staying = ops.invert(slot_of_staying, rest)
        else:  # by falling similarity
            slot_of_staying = order - merges
            staying = ops.invert(order, merges + np.arange(rest))
        # A token's number on side B is half its index; `//` is nine operations.
        slot_of = rest + jax.lax.div(partner, jnp.int32(2))
        sources = jnp.broadcast_to(sources, (order.shape[0], sources.size))
        targets = jnp.broadcast_to(targets, (order.shape[0], targets.size))
        slots_a = jnp.where(leaves, slot_of, slot_of_staying)
        slots_b = rest + targets // 2
        absorbed, partner, target = ops.pick(order, merges, sources, partner, slot_of)
        keep = jnp.concatenate([first + 2 * staying, targets], axis=1)
        index = SlotIndex(keep, absorbed, target, partner)

        def by_token(of_a, of_b):
            return ops.alternate(of_b, of_a) if first else ops.alternate(of_a, of_b)

        dest = by_token(slots_a, slots_b)
        if short and prefix:
            keeps_order = by_token(~leaves, jnp.zeros_like(slots_b, bool))
            dest = ops.place_or(keeps_order, by_token(slot_of, slots_b))
        elif short:
            dest = jax.lax.optimization_barrier(dest)
        return Assignment(dest, index=index, n_out=counts.n_out)


def keep_highest(score, n_out):
    """The Assignment that keeps the `n_out` tokens of the highest scores [B, n].

    They keep their spatial order.
    """
    slot = ops.place_among(ops.rank(score) < n_out)
    dest = jnp.maximum(slot, DROPPED)
    index = SlotIndex.one_each(ops.invert(slot, n_out))
    return Assignment(dest, index=index, n_out=n_out)


def keep_and_sum(keep, weight, n_out):
    """The Assignment that keeps some tokens and sums up all others.

    keep: [B, n] bool, True for `n_out - 1` tokens, which keep their spatial order
    weight: [B, n], weights of the others in their sum, which is the last slot
    """
    dest = jnp.where(keep, ops.count_before(keep), n_out - 1)
    weight = jnp.where(keep, 1.0, weight)
    staying = ops.invert(ops.place_among(keep), n_out - 1)
    leaving = ops.invert(ops.place_among(~keep), keep.shape[1] - n_out + 1)
    first = leaving[:, :1]
    absorbed = leaving[:, 1:]
    target = jnp.full_like(absorbed, n_out - 1)
    staying = jnp.concatenate([staying, first], axis=1)
    index = SlotIndex(staying, absorbed, target, first)
    return Assignment(dest, weight, index=index, n_out=n_out, mean=False)


@node
def find_partners(similarity, tokens):
    """The most similar token for each row; the first of equally similar ones.

    similarity: [B, a, t], of `a` tokens to `tokens`
    tokens: [B or 1, t] int32
    Returns ([B, a] `ops.order_key` of the highest similarity, [B, a] that token).
    """
    order = jax.lax.broadcasted_iota(jnp.int32, similarity.shape, 2)
    tokens = jnp.broadcast_to(tokens[:, None, :], similarity.shape)
    best, _, partner = ops.largest(ops.order_key(similarity), order, tokens)
    return best, partner


def merge_in_place(absorbed, partners, counts):
    """The Assignment in which some tokens merge into partners; others keep their order.

    absorbed: [B, r] int32, the tokens that leave, each once
    partners: [B, r] int32, the tokens that they merge into, which stay
    """
    token = jnp.arange(counts.n_in, dtype=jnp.int32)[None]

    def before(tokens):
        """Whether each absorbed token is before each token. [B, m] -> [B, m, r]."""
        earlier = absorbed[:, None, :] < tokens[:, :, None]
        return earlier.astype(jnp.int32)

    # The slot of a token that stays is its index less the absorbed tokens before it.
    # These are counted before each partner, and before each absorbed token.
    counts_before = ops.sums((before(partners), before(absorbed)), axis=2)
    before_partner, before_absorbed = counts_before
    target = partners - before_partner
    staying_before = absorbed - before_absorbed
    leaves = absorbed[:, None, :] == token[:, :, None]
    joined = jnp.where(leaves, target[:, None, :], DROPPED)
    joined = jnp.max(joined, axis=-1)
    slot_of_staying = token - jnp.sum(before(token), axis=-1, dtype=jnp.int32)
    # Slot s keeps token s + m with m absorbed tokens before it, which are those that
    # have at most s staying tokens before them.
    slot = jnp.arange(counts.n_out, dtype=jnp.int32)[None]
    skipped = staying_before[:, None, :] <= slot[:, :, None]
    keep = slot + jnp.sum(skipped, axis=-1, dtype=jnp.int32)
    dest = jnp.where(joined == DROPPED, slot_of_staying, joined)
    index = SlotIndex(keep, absorbed, target, partners)
    return Assignment(dest, index=index, n_out=counts.n_out)


def keep_and_join(keep, absorbed, target, n):
    """The Assignment in which slots keep one token each and absorb others.

    All other tokens are dropped.

    keep: [B, n_out] int32, the tokens that slots keep, in the order of the slots
    absorbed, target: [B, e] int32, further tokens, each once, and the slots they join
    n: number of tokens before the step
    """
    n_out = keep.shape[1]
    slots = jnp.broadcast_to(jnp.arange(n_out, dtype=jnp.int32), keep.shape)
    tokens = jnp.concatenate((keep, absorbed), axis=1)
    slots = jnp.concatenate((slots, target), axis=1)
    tokens = tokens[:, None, :]
    holds = tokens == jnp.arange(n, dtype=jnp.int32)[None, :, None]
    dest = jnp.where(holds, slots[:, None, :], DROPPED)
    dest = jnp.max(dest, axis=-1)
    partners = ops.gather_rows(keep, target)
    index = SlotIndex(keep, absorbed, target, partners)
    return Assignment(dest, index=index, n_out=n_out)


def join_most_similar(metric, sources, targets, joining=None):
    """Pairs of sources and their most similar targets, the first of equal ones.

    metric: [B, n, d], the feature that is compared
    sources, targets: [B, a] and [B, t] int32, tokens
    joining: number of sources to pair, those with the highest similarity; None: all
    Returns (sources, their targets), [B, r] int32 each.
    """
    sides = (ops.gather_rows(metric, side) for side in (sources, targets))
    similarity = ops.cosine(*sides)
    best, partners = find_partners(similarity, targets)
    if joining is None:
        return sources, partners
    return ops.pick(ops.rank(best), joining, sources, partners)
