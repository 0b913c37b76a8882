"""Shared reducers, and functions that make Assignments.

A reducer reads `ReducerInputs` and `StepCounts`. It returns an `Assignment`, a
`Mixing`, or in masked training a `Masking`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from imagepiece_jax.kernels.joining import find_partners, join_sides
from imagepiece_jax.kernels.merging import DROPPED, SlotIndex
from imagepiece_jax.kernels.ranking import (
    count_kept_before,
    gather_rows,
    index_kept_tokens,
    invert_order,
    pick_by_rank,
    rank_tokens,
    sum_arrays,
)
from imagepiece_jax.kernels.similarity import (
    cosine_similarity,
    side_cosines,
    vector_lengths,
)
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.state import Assignment, ReducerInputs

METRICS = ("key", "query", "value", "token")  # features by which tokens are compared
# Scores that rank tokens: {name: field of ReducerInputs}. "auto" reads class attention;
# `Method.score_for` replaces it by a score that fits the model.
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

    @property
    def needed_inputs(self) -> frozenset[str]:
        """Fields of ReducerInputs; unless named, features, scores and rng may be None.

        Subclasses may set it as a class attribute, and `metric`, too.
        """
        return frozenset()

    @property
    def metric(self) -> str | None:
        """The feature to compare, one of METRICS, or "input"; None: no comparison."""
        return None

    @property
    def attention_reads(self) -> frozenset[str]:
        """Scores and projections for attention to compute for this reducer."""
        names = self.needed_inputs & (ATTENTION_SCORES | {"shift", "key"})
        if self.metric and "metric" in self.needed_inputs and self.metric != "token":
            names |= {self.metric}
        return frozenset(names)

    def extra_macs(self, n_in: int, embed_dim: int, num_heads: int) -> int:
        """MACs of the reducer itself, for one image with `n_in` image tokens."""
        return 0

    def draws_random(self, counts: StepCounts, train: bool) -> bool:
        """Whether this call draws random numbers from `rng`."""
        return "rng" in self.needed_inputs

    def check_fits(self, grid: tuple[int, int] | None, counts: StepCounts) -> None:
        """Raise InputError if the reducer cannot reduce these tokens.

        grid: (height, width); None after an earlier reduction
        """


class MaskingReducer(Reducer):
    """Base of reducers that draw a random mask where the plan removes no tokens."""

    needed_inputs = frozenset({"rng"})

    def draws_random(self, counts: StepCounts, train: bool) -> bool:
        return counts.n_out >= counts.n_in


@dataclasses.dataclass(frozen=True)
class Ranking(Reducer):
    """Base of reducers that rank tokens by a score, one of SCORES.

    Scores are positive and add up to at most 1; a high score marks an important token.
    """

    score: str = dataclasses.field(default="auto", kw_only=True)

    @property
    def needed_inputs(self) -> frozenset[str]:
        names = {SCORES[self.score]}
        if self.metric:
            names.add("metric")
        return frozenset(names)

    def token_scores(
        self, inputs: ReducerInputs, counts: StepCounts
    ) -> Float[Array, "batch tokens"]:
        """Compute float32 scores; a token removed by a mask scores infinity.

        So no merge of low scores takes it. In masked training, do not keep the highest
        scores, because removed tokens would stay.
        """
        score = getattr(inputs, SCORES[self.score])
        if self.score == "energy":
            live = None
            if inputs.mask is not None:
                live = (inputs.mask > 0.5).astype(jnp.float32)
            margin = 0.75 * (1 - counts.progress)  # falls with the depth
            score = uniqueness_scores(score, margin, live)
        if inputs.mask is None:
            return score
        return jnp.where(inputs.mask > 0.5, score, jnp.inf)


@dataclasses.dataclass(frozen=True)
class TopK(Ranking):
    """Keep the highest-scored tokens, in spatial order."""

    # whether the last output token is the score-weighted sum of the leaving tokens, as
    # in EViT (Liang et al. 2022); its gradient reaches the scores
    fuse: bool = False

    def __call__(
        self, inputs: ReducerInputs, counts: StepCounts, train: bool = False
    ) -> Assignment:
        score = self.token_scores(inputs, counts)
        if not self.fuse:
            return keep_highest(score, counts.n_out)
        keep = rank_tokens(score) < counts.n_out - 1
        return keep_and_sum(keep, score, counts.n_out)


@dataclasses.dataclass(frozen=True)
class Bipartite(Reducer):
    """Merge the most similar pairs between two sides (ToMe, Bolya et al. 2023, sec. 3).

    Side A holds the tokens at even positions, counted with the prefix; side B holds the
    rest. The most similar tokens of A merge into their best partners in B. The prefix
    does not merge.
    """

    metric: str = "key"
    needed_inputs = frozenset({"metric"})

    def __call__(
        self, inputs: ReducerInputs, counts: StepCounts, train: bool = False
    ) -> Assignment:
        merges = counts.n_in - counts.n_out
        first = inputs.num_prefix % 2  # A's first image token: positions count all
        metric = jax.lax.stop_gradient(inputs.metric)
        similarity = side_cosines(metric, first, inputs.x, inputs.all_metric)
        targets = jnp.arange(1 - first, counts.n_in, 2, dtype=jnp.int32)[None]
        best, partner = find_partners(similarity, targets)
        # Slots are A's staying tokens, then B, so the next split mixes the two sides.
        in_order = inputs.num_prefix > 0
        order = rank_tokens(best)
        slot_of_token, index = join_sides(
            order, partner, merges, first, in_order, inputs.x
        )
        return Assignment(slot_of_token, index=index, n_out=counts.n_out)


def shift_shares(
    change: Float[Array, "batch tokens dim"],
    live: Float[Array, "batch tokens"] | None = None,
) -> Float[Array, "batch tokens"]:
    """Measure token changes by a layer, as float32 shares with sum 1.

    change: added to the tokens by the layer
    live: 1 for live tokens and 0 for masked tokens; None: all live
    Source: Choi et al. 2025 (Representation Shift, by the L2 distance).
    """
    moved = vector_lengths(change)
    if live is not None:
        moved = moved * live
    total = jnp.sum(moved, axis=1, keepdims=True)
    return moved / jnp.maximum(total, 1e-6)


def uniqueness_scores(
    key: Float[Array, "batch tokens head_dim"],
    margin: float,
    live: Float[Array, "batch tokens"] | None = None,
) -> Float[Array, "batch tokens"]:
    """Score tokens by 1 - energy (PiToMe), as float32 shares with sum 1.

    key: means over heads
    live: 1 for live tokens and 0 for masked tokens; None: all live
    Source: Tran et al. 2024, section 3.2.
    """
    # Energy is the mean of ELU(cosine - margin) over all tokens: at most 1, and high
    # for a token similar to many tokens.
    alike = jax.nn.elu(cosine_similarity(key, key) - margin)
    if live is None:
        live = jnp.ones(key.shape[:2], jnp.float32)
    count = jnp.sum(live, axis=1, keepdims=True)
    count = jnp.maximum(count, 1.0)
    energy = jnp.sum(alike * live[:, None, :], axis=2) / count
    unlike = (1 - energy) * live
    total = jnp.sum(unlike, axis=1, keepdims=True)
    return unlike / jnp.maximum(total, 1e-6)


def keep_highest(score: Float[Array, "batch tokens"], n_out: int) -> Assignment:
    """Assign slots to the `n_out` highest scores, in spatial order."""
    slot = index_kept_tokens(rank_tokens(score) < n_out)
    slot_of_token = jnp.maximum(slot, DROPPED)
    index = SlotIndex.one_token_each(invert_order(slot, n_out))
    return Assignment(slot_of_token, index=index, n_out=n_out)


def keep_and_sum(
    keep: Bool[Array, "batch tokens"], weight: Float[Array, "batch tokens"], n_out: int
) -> Assignment:
    """Keep `n_out - 1` tokens in spatial order; the last slot sums the leaving tokens.

    weight: weights in the sum
    """
    slot_of_token = jnp.where(keep, count_kept_before(keep), n_out - 1)
    weight = jnp.where(keep, 1.0, weight)
    staying = invert_order(index_kept_tokens(keep), n_out - 1)
    leaving = invert_order(index_kept_tokens(~keep), keep.shape[1] - n_out + 1)
    first = leaving[:, :1]
    absorbed = leaving[:, 1:]
    target = jnp.full_like(absorbed, n_out - 1)
    # The last slot keeps the first leaving token, which the others join.
    kept = jnp.concatenate([staying, first], axis=1)
    index = SlotIndex(kept, absorbed, target, first)
    return Assignment(slot_of_token, weight, index=index, n_out=n_out, mean=False)


def merge_in_place(
    absorbed: Int[Array, "batch pairs"],
    partners: Int[Array, "batch pairs"],
    counts: StepCounts,
) -> Assignment:
    """Merge `absorbed` tokens into staying `partners`; the token order is kept.

    absorbed: no token may be absorbed twice
    """
    token = jnp.arange(counts.n_in, dtype=jnp.int32)[None]

    def before(tokens: Int[Array, "#batch listed"]) -> Int[Array, "batch listed pairs"]:
        """Mark absorbed tokens before every token."""
        earlier = absorbed[:, None, :] < tokens[:, :, None]
        return earlier.astype(jnp.int32)

    # A staying token's slot is its index minus the number of absorbed tokens before it.
    # Absorbed tokens are counted before all partners, and before all absorbed tokens.
    counts_before = sum_arrays((before(partners), before(absorbed)), axis=2)
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
    slot_of_token = jnp.where(joined == DROPPED, slot_of_staying, joined)
    index = SlotIndex(keep, absorbed, target, partners)
    return Assignment(slot_of_token, index=index, n_out=counts.n_out)


def keep_and_join(
    keep: Int[Array, "batch slots"],
    absorbed: Int[Array, "batch absorbed"],
    target: Int[Array, "batch absorbed"],
    n: int,
) -> Assignment:
    """Keep one token per slot, let slots absorb tokens, and drop the rest.

    keep: in slot order
    absorbed, target: absorbed tokens (no token twice) and their slots
    n: number of tokens before the step
    """
    n_out = keep.shape[1]
    slots = jnp.broadcast_to(jnp.arange(n_out, dtype=jnp.int32), keep.shape)
    tokens = jnp.concatenate((keep, absorbed), axis=1)
    slots = jnp.concatenate((slots, target), axis=1)
    tokens = tokens[:, None, :]
    holds = tokens == jnp.arange(n, dtype=jnp.int32)[None, :, None]
    slot_of_token = jnp.where(holds, slots[:, None, :], DROPPED)
    slot_of_token = jnp.max(slot_of_token, axis=-1)
    partners = gather_rows(keep, target)
    index = SlotIndex(keep, absorbed, target, partners)
    return Assignment(slot_of_token, index=index, n_out=n_out)


def join_most_similar(
    metric: Float[Array, "batch tokens dim"],
    sources: Int[Array, "batch sources"],
    targets: Int[Array, "batch targets"],
    joining: int | None = None,
) -> tuple[Int[Array, "batch pairs"], Int[Array, "batch pairs"]]:
    """Pair sources with their most similar targets; ties go to the first target.

    metric: the feature to compare
    joining: number of sources to pair, most similar first; None: all sources
    Returns (sources, targets), pair by pair.
    """
    sides = (gather_rows(metric, side) for side in (sources, targets))
    similarity = cosine_similarity(*sides)
    best, partners = find_partners(similarity, targets)
    if joining is None:
        return sources, partners
    return pick_by_rank(rank_tokens(best), joining, sources, partners)
