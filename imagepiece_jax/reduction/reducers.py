"""Shared reducers, and functions that make Assignments.

A reducer reads `ReducerInputs` and `StepCounts`. It returns an `Assignment`, a
`Mixing`, or in masked training a `Masking`.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.nodes import onnx_op
from imagepiece_jax.kernels.choice import is_short
from imagepiece_jax.reduction import ops
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.state import DROPPED, Assignment, SlotIndex

METRICS = ("key", "query", "value", "token")  # features by which tokens are compared
# Scores that rank tokens: {name: field of ReducerInputs}. "auto" reads class attention;
# `Method.for_model` replaces it by a score that fits the model.
SCORES = {
    "auto": "cls_attn",
    # attention from the class token
    "class": "cls_attn",
    # attention from the mean query, which is the mean of all tokens' queries
    "mean": "mean_attn",
    # the mean of both
    "class_and_mean": "cls_and_mean_attn",
    # mean attention received by the token
    "received": "attn_columns",
    # dissimilarity to the rest of the tokens (PiToMe, Tran et al. 2024)
    "energy": "key",
    # change of the token by attention (Representation Shift, Choi et al. 2025)
    "shift": "shift",
    # attention from the probe in the model's attention pool
    "probe": "probe",
}
# Scores computed by a block's attention
ATTENTION_SCORES = {"cls_attn", "mean_attn", "cls_and_mean_attn", "attn_columns"}


class Reducer:
    """Base of reducers, called as reducer(inputs, counts, train).

    Subclasses are frozen dataclasses, or Flax modules if they learn.
    """

    # Fields of ReducerInputs read by the reducer. Features, scores and rng may be None
    # unless named here.
    needs: ClassVar[frozenset[str]] = frozenset()
    # the feature to compare, one of METRICS; None: no comparison
    metric = None

    @property
    def reads(self) -> frozenset[str]:
        """Scores and projections for attention to compute for this reducer."""
        names = self.needs & (ATTENTION_SCORES | {"shift", "key"})
        if "metric" in self.needs and self.metric != "token":
            names |= {self.metric}
        return frozenset(names)

    def extra_macs(self, n_in: int, embed_dim: int, num_heads: int) -> int:
        """MACs of the reducer itself, for one image with `n_in` image tokens."""
        return 0

    def draws(self, counts, train: bool) -> bool:
        """Whether this call draws random numbers from `rng`."""
        return "rng" in self.needs

    def check_fits(self, grid: tuple[int, int] | None, counts: StepCounts):
        """Raise InputError if the reducer cannot reduce these tokens.

        grid: (height, width); None after an earlier reduction
        """


class MaskingReducer(Reducer):
    """Base of reducers that draw a random mask where the plan removes no tokens."""

    needs = frozenset({"rng"})

    def draws(self, counts, train):
        return counts.n_out >= counts.n_in


@dataclasses.dataclass(frozen=True)
class Ranking(Reducer):
    """Base of reducers that rank tokens by a score, one of SCORES.

    Scores are positive and add up to at most 1; a high score marks an important token.
    """

    score: str = dataclasses.field(default="auto", kw_only=True)

    @property
    def needs(self):
        names = {SCORES[self.score]}
        if self.metric:
            names.add("metric")
        return frozenset(names)

    def scores(self, inputs, counts):
        """Compute scores [B, n] float32; a token removed by a mask scores infinity.

        So no merge of low scores takes it. Do not keep the highest scores in masked
        training: removed tokens would stay.
        """
        score = getattr(inputs, SCORES[self.score])
        if self.score == "energy":
            live = None
            if inputs.mask is not None:
                live = (inputs.mask > 0.5).astype(jnp.float32)
            margin = 0.75 * (1 - counts.progress)  # falls with the depth
            score = ops.uniqueness(score, margin, live)
        if inputs.mask is None:
            return score
        return jnp.where(inputs.mask > 0.5, score, jnp.inf)


@dataclasses.dataclass(frozen=True)
class TopK(Ranking):
    """Keep the highest-scored tokens, in spatial order."""

    # whether the last output token is the score-weighted sum of the leaving tokens, as
    # in EViT (Liang et al. 2022); its gradient reaches the scores
    fuse: bool = False

    def __call__(self, inputs, counts, train=False):
        score = self.scores(inputs, counts)
        if not self.fuse:
            return keep_highest(score, counts.n_out)
        keep = ops.rank(score) < counts.n_out - 1
        return keep_and_sum(keep, score, counts.n_out)


@dataclasses.dataclass(frozen=True)
class Bipartite(Reducer):
    """Merge the most similar pairs between two sides (ToMe, Bolya et al. 2023, sec. 3).

    Side A holds the tokens at even positions, counted with the prefix; side B holds the
    rest. The most similar tokens of A merge into their best partners in B. The prefix
    does not merge.
    """

    metric: str = "key"
    needs = frozenset({"metric"})

    def __call__(self, inputs, counts, train=False):
        merges = counts.n_in - counts.n_out
        prefix = inputs.num_prefix
        # Index of the first image token on side A: positions count the prefix, too.
        first = prefix % 2
        sources = jnp.arange(first, counts.n_in, 2, dtype=jnp.int32)[None]
        targets = jnp.arange(1 - first, counts.n_in, 2, dtype=jnp.int32)[None]
        metric = jax.lax.stop_gradient(inputs.metric)
        short = is_short(inputs.x)
        if short:
            if self.metric == "key" and inputs.all_keys is not None:
                metric = inputs.all_keys
            alike = ops.cosine(metric)[:, -counts.n_in :, -counts.n_in :]
            similarity = alike[:, first::2, 1 - first :: 2]
        else:
            # Scaling all tokens at once is one GPU kernel; two sides need several.
            metric = ops.unit(metric)
            similarity = ops.products(metric[:, first::2], metric[:, 1 - first :: 2])
        best, partner = find_partners(similarity, targets)
        order = ops.rank(best)  # [B, |A|]
        leaves = order < merges
        # Slots of A's staying tokens, and their numbers on side A. Slots are the rest
        # of A, then B, so the next split by position mixes the two sides.
        n_staying = sources.shape[1] - merges
        if prefix:  # in their order
            slot_of_staying = ops.index_among(~leaves)
            staying = ops.invert(slot_of_staying, n_staying)
        else:  # by falling similarity
            slot_of_staying = order - merges
            staying = ops.invert(order, merges + np.arange(n_staying))
        # A token's number on side B is half its index. `//` would be nine operations.
        slot_of = n_staying + jax.lax.div(partner, jnp.int32(2))
        sources = jnp.broadcast_to(sources, (order.shape[0], sources.size))
        targets = jnp.broadcast_to(targets, (order.shape[0], targets.size))
        slots_a = jnp.where(leaves, slot_of, slot_of_staying)
        slots_b = n_staying + targets // 2
        absorbed, partner, target = ops.pick(order, merges, sources, partner, slot_of)
        keep = jnp.concatenate([first + 2 * staying, targets], axis=1)
        index = SlotIndex(keep=keep, absorbed=absorbed, target=target, partner=partner)

        def by_token(of_a, of_b):
            return ops.alternate(of_b, of_a) if first else ops.alternate(of_a, of_b)

        dest = by_token(slots_a, slots_b)
        if short and prefix:
            keeps_order = by_token(~leaves, jnp.zeros_like(slots_b, bool))
            dest = ops.index_or(keeps_order, by_token(slot_of, slots_b))
        elif short:
            dest = jax.lax.optimization_barrier(dest)
        return Assignment(dest, index=index, n_out=counts.n_out)


def keep_highest(score, n_out):
    """Assign slots to the `n_out` highest scores [B, n], in spatial order."""
    slot = ops.index_among(ops.rank(score) < n_out)
    dest = jnp.maximum(slot, DROPPED)
    index = SlotIndex.one_each(ops.invert(slot, n_out))
    return Assignment(dest, index=index, n_out=n_out)


def keep_and_sum(keep, weight, n_out):
    """Keep `n_out - 1` tokens in spatial order; the last slot sums the leaving tokens.

    keep: [B, n] bool
    weight: [B, n], weights in the sum
    """
    dest = jnp.where(keep, ops.count_before(keep), n_out - 1)
    weight = jnp.where(keep, 1.0, weight)
    staying = ops.invert(ops.index_among(keep), n_out - 1)
    leaving = ops.invert(ops.index_among(~keep), keep.shape[1] - n_out + 1)
    first = leaving[:, :1]
    absorbed = leaving[:, 1:]
    target = jnp.full_like(absorbed, n_out - 1)
    # The last slot keeps the first leaving token, which the others join.
    kept = jnp.concatenate([staying, first], axis=1)
    index = SlotIndex(keep=kept, absorbed=absorbed, target=target, partner=first)
    return Assignment(dest, weight, index=index, n_out=n_out, mean=False)


@onnx_op
def find_partners(similarity, tokens):
    """Find every row's most similar token; ties go to the first token.

    similarity: [B, a, t], from `a` tokens to `tokens`
    tokens: [B or 1, t] int32
    Returns (`ops.order_key` of the highest similarity [B, a], token [B, a]).
    """
    order = jax.lax.broadcasted_iota(jnp.int32, similarity.shape, 2)
    tokens = jnp.broadcast_to(tokens[:, None, :], similarity.shape)
    best, _, partner = ops.largest(ops.order_key(similarity), order, tokens)
    return best, partner


def all_cosines(inputs):
    """Compare all image tokens by cosine, without a gradient. -> [B, n, n] float32."""
    if inputs.all_x is None:
        x = ops.unit(jax.lax.stop_gradient(inputs.x))
        return ops.products(x, x)
    n = inputs.x.shape[1]
    return ops.cosine(jax.lax.stop_gradient(inputs.all_x))[:, -n:, -n:]


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
    # not kept has `most_alike`'s lowest value, as NaN has, so no token joins it.
    itself = jnp.eye(order.shape[1], dtype=bool)[None]
    kept = order < n_out
    alike = jnp.where(itself, 2.0, alike)
    alike = jnp.where(kept[:, None, :], alike, -3.0)
    best, slot = ops.most_alike(alike, order)
    return slot, jnp.minimum(best, 1.0)


def merge_in_place(absorbed, partners, counts):
    """Merge `absorbed` tokens into staying `partners`; the token order is kept.

    absorbed, partners: [B, r] int32; no token may be absorbed twice
    """
    token = jnp.arange(counts.n_in, dtype=jnp.int32)[None]

    def before(tokens):
        """Mark absorbed tokens before every token. [B, m] -> [B, m, r] int32."""
        earlier = absorbed[:, None, :] < tokens[:, :, None]
        return earlier.astype(jnp.int32)

    # A staying token's slot is its index minus the number of absorbed tokens before it.
    # Absorbed tokens are counted before all partners, and before all absorbed tokens.
    counts_before = ops.sums((before(partners), before(absorbed)), axis=2)
    before_partner, before_absorbed = counts_before
    target = partners - before_partner
    staying_before = absorbed - before_absorbed
    leaves = absorbed[:, None, :] == token[:, :, None]
    joined = jnp.where(leaves, target[:, None, :], DROPPED)
    joined = jnp.max(joined, axis=-1)
    slot_of_staying = token - jnp.sum(before(token), axis=-1, dtype=jnp.int32)
    # Slot s keeps token s + m, where m counts the absorbed tokens before it. An
    # absorbed token counts if at most s staying tokens are before it.
    slot = jnp.arange(counts.n_out, dtype=jnp.int32)[None]
    skipped = staying_before[:, None, :] <= slot[:, :, None]
    keep = slot + jnp.sum(skipped, axis=-1, dtype=jnp.int32)
    dest = jnp.where(joined == DROPPED, slot_of_staying, joined)
    index = SlotIndex(keep=keep, absorbed=absorbed, target=target, partner=partners)
    return Assignment(dest, index=index, n_out=counts.n_out)


def keep_and_join(keep, absorbed, target, n):
    """Keep one token per slot, let slots absorb tokens, and drop the rest.

    keep: [B, n_out] int32, in slot order
    absorbed, target: [B, e] int32, absorbed tokens (no token twice) and their slots
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
    index = SlotIndex(keep=keep, absorbed=absorbed, target=target, partner=partners)
    return Assignment(dest, index=index, n_out=n_out)


def join_most_similar(metric, sources, targets, joining=None):
    """Pair sources with their most similar targets; ties go to the first target.

    metric: [B, n, d], the feature to compare
    sources, targets: [B, a] and [B, t] int32, tokens
    joining: number of sources to pair, most similar first; None: all sources
    Returns (sources, targets), both [B, r] int32.
    """
    sides = (ops.gather_rows(metric, side) for side in (sources, targets))
    similarity = ops.cosine(*sides)
    best, partners = find_partners(similarity, targets)
    if joining is None:
        return sources, partners
    return ops.pick(ops.rank(best), joining, sources, partners)
