"""Shared reducers, and functions that make Assignments.

A reducer reads `ReducerInputs` and `StepCounts`. It returns an `Assignment`, a
`Mixing`, or in masked training a `Masking`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imagepiece_jax.kernels import ranking, similarity
from imagepiece_jax.kernels.array_shapes import (
    TokenFlags,
    TokenIndices,
    TokenRows,
    TokenValues,
)
from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.state import Assignment, ReducerInputs, Result

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
    """Base of reducers: frozen dataclasses, or Flax modules if they learn."""

    def __call__(
        self, inputs: ReducerInputs, counts: StepCounts, train: bool = False
    ) -> Result:
        """Decide where the image tokens go; `train` matters to learned reducers."""
        raise NotImplementedError

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
        reads = self.needed_inputs & (ATTENTION_SCORES | {"shift", "key"})
        if self.metric and "metric" in self.needed_inputs and self.metric != "token":
            reads |= {self.metric}
        return frozenset(reads)

    def extra_macs(self, n_in: int, embed_dim: int, num_heads: int) -> int:
        """MACs of the reducer itself, for one image with `n_in` image tokens."""
        return 0

    def draws_random(self, counts: StepCounts, train: bool) -> bool:
        """Whether this call draws random numbers from `rng`."""
        return "rng" in self.needed_inputs

    def check_fits(self, grid: tuple[int, int] | None, counts: StepCounts) -> None:
        """Check whether the reducer can reduce; grid: None after a reduction."""


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
        fields = {SCORES[self.score]}
        if self.metric:
            fields.add("metric")
        return frozenset(fields)

    def token_scores(self, inputs: ReducerInputs, counts: StepCounts) -> TokenValues:
        """Compute float32 scores; a token removed by a mask scores infinity.

        So no merge of low scores takes it. In masked training, do not keep the highest
        scores, because removed tokens would stay.
        """
        score = getattr(inputs, SCORES[self.score])  # for "energy" the keys
        # The mask is 0 or 1, but has a gradient, so it is floats.
        is_live = None if inputs.mask is None else inputs.mask > 0.5
        if self.score == "energy":
            margin = 0.75 * (1 - counts.progress)  # falls with the depth
            live_mask = None if is_live is None else is_live.astype(jnp.float32)
            score = uniqueness_scores(score, margin, live_mask)
        return score if is_live is None else jnp.where(is_live, score, jnp.inf)


@dataclasses.dataclass(frozen=True)
class TopK(Ranking):
    """Keep the highest-scored tokens, in spatial order."""

    # whether the last output token is the score-weighted sum of the leaving tokens, as
    # in EViT (Liang et al. 2022); its gradient reaches the scores
    fuse: bool = False

    def __call__(self, inputs, counts, train=False):
        score = self.token_scores(inputs, counts)
        if not self.fuse:
            return keep_highest(score, counts.n_out)
        is_kept = ranking.rank_tokens(score) < counts.n_out - 1
        return keep_and_sum(is_kept, score, counts.n_out)


@dataclasses.dataclass(frozen=True)
class Bipartite(Reducer):
    """Merge the most similar pairs between two sides (ToMe, Bolya et al. 2023, sec. 3).

    Side A holds the tokens at even positions, counted with the prefix; side B holds the
    rest. The most similar tokens of A merge into their best partners in B. The prefix
    does not merge.
    """

    metric: str = "key"
    needed_inputs = frozenset({"metric"})

    def __call__(self, inputs, counts, train=False):
        num_merges = counts.n_in - counts.n_out
        # A's first image token, 0 or 1: positions count the prefix, too.
        first_token = inputs.num_prefix % 2
        metric = jax.lax.stop_gradient(inputs.metric)
        cosines = similarity.side_cosines(
            metric, first_token, inputs.x, inputs.all_metric
        )
        ranks, partners = ranking.rank_rows(cosines)  # of A's tokens; on side B
        is_merged = ranks < num_merges
        num_staying = ranks.shape[1] - num_merges
        # Slots are A's staying tokens, then B, so the next split mixes the two sides.
        # Behind a prefix A's tokens keep their order, as in the authors' code.
        slots = ranks - num_merges
        if inputs.num_prefix > 0:
            slots = ranking.count_kept_before(~is_merged)
        slots_a = jnp.where(is_merged, num_staying + partners, slots)
        last_slots = jnp.arange(num_staying, counts.n_out, dtype=jnp.int32)
        slots_b = jnp.broadcast_to(last_slots, (ranks.shape[0], last_slots.size))
        sides = (slots_b, slots_a) if first_token else (slots_a, slots_b)
        return Assignment(ranking.interleave_tokens(*sides), n_out=counts.n_out)


def shift_shares(
    token_change: TokenRows, live_mask: TokenValues | None = None
) -> TokenValues:
    """Measure token changes by a layer, as float32 shares with sum 1 (0: none live).

    token_change: added to the tokens by the layer
    live_mask: 1 for live tokens and 0 for masked tokens; None: all live
    Source: Choi et al. 2025 (Representation Shift, by the L2 distance).
    """
    distance = similarity.vector_lengths(token_change)
    if live_mask is not None:
        distance = distance * live_mask
    distance_sum = jnp.sum(distance, axis=1, keepdims=True)
    return distance / jnp.maximum(distance_sum, 1e-6)


def uniqueness_scores(
    key: TokenRows, margin: float, live_mask: TokenValues | None = None
) -> TokenValues:
    """Score tokens by 1 - energy (PiToMe), float32 shares with sum 1 (0: none live).

    key: means over heads
    live_mask: 1 for live tokens and 0 for masked tokens; None: all live
    Source: Tran et al. 2024, section 3.2.
    """
    # Energy is the mean of ELU(cosine - margin) over all tokens: at most 1, and high
    # for a token similar to many tokens. [batch, tokens, tokens]
    elu_similarity = jax.nn.elu(similarity.cosine_similarity(key, key) - margin)
    if live_mask is None:
        live_mask = jnp.ones(key.shape[:2], jnp.float32)
    num_live = jnp.maximum(jnp.sum(live_mask, axis=1, keepdims=True), 1.0)
    energy = jnp.sum(elu_similarity * live_mask[:, None, :], axis=2) / num_live
    uniqueness = (1 - energy) * live_mask
    uniqueness_sum = jnp.sum(uniqueness, axis=1, keepdims=True)
    return uniqueness / jnp.maximum(uniqueness_sum, 1e-6)


def keep_highest(score: TokenValues, n_out: int) -> Assignment:
    """Assign slots to the `n_out` highest scores, in spatial order."""
    slot_of_token = ranking.index_kept_tokens(ranking.rank_tokens(score) < n_out)
    return Assignment(slot_of_token, n_out=n_out, merges=False)


def keep_and_sum(is_kept: TokenFlags, weight: TokenValues, n_out: int) -> Assignment:
    """Keep `n_out - 1` tokens in spatial order; the last slot is the rest's sum."""
    slot_of_token = jnp.where(is_kept, ranking.count_kept_before(is_kept), n_out - 1)
    weight = jnp.where(is_kept, 1.0, weight)
    return Assignment(slot_of_token, weight, n_out=n_out, mean=False)


def merge_most_similar(
    similarities: Float[Array, "batch sources targets"],
    sources: Int[Array, "batch sources"],
    targets: Int[Array, "batch targets"],
    counts: StepCounts,
) -> Assignment:
    """Merge the most similar sources into their most similar targets.

    Ties go to the first target. The token order is kept.
    """
    ranks, columns = ranking.rank_rows(similarities)
    offset = ranking.gather_rows(targets, columns) - sources  # [batch, sources]
    num_merges = counts.n_in - counts.n_out
    if num_merges < sources.shape[1]:
        offset = jnp.where(ranks < num_merges, offset, 0)
    # A sum over pairs moves each offset to its source, so that nothing scatters.
    token = jnp.arange(counts.n_in, dtype=jnp.int32)[None]
    is_source = sources[:, None, :] == token[:, :, None]  # [batch, tokens, sources]
    moved_offset = jnp.where(is_source, offset[:, None, :], 0)
    target = token + jnp.sum(moved_offset, axis=-1, dtype=jnp.int32)
    return merge_into(target, counts.n_out)


def merge_into(target: TokenIndices, n_out: int) -> Assignment:
    """Merge every token into its target; the order of the targets is kept.

    target: tokens; a staying token is its own target
    """
    token = jnp.arange(target.shape[1], dtype=jnp.int32)[None]
    return Assignment(ranking.count_kept_before(target == token, target), n_out=n_out)


def join_kept(
    cosines: Float[Array, "batch tokens tokens"], ranks: TokenIndices, n_out: int
) -> tuple[TokenIndices, TokenValues]:
    """Send every token to the most similar of the first `n_out` tokens by rank.

    ranks: from 0; on a tie the first kept token wins
    Returns (slot, cosine to the token kept there). A kept token's slot is its rank, and
    its cosine 1.
    """
    # A kept token is its own partner, so the same pass finds its slot: 2 is above every
    # cosine. No token joins a token that is not kept, or of NaN: -3 is below.
    num_tokens = ranks.shape[1]
    cosines = jnp.where(jnp.eye(num_tokens, dtype=bool)[None], 2.0, cosines)
    cosines = jnp.where(jnp.isnan(cosines), -3.0, cosines)
    cosines = jnp.where(ranks[:, None, :] < n_out, cosines, -3.0)
    slots = jnp.broadcast_to(ranks[:, None, :], cosines.shape)
    best_cosine, slot = ranking.reduce_largest(cosines, slots)
    return slot, jnp.minimum(best_cosine, 1.0)


def keep_and_join(
    kept_tokens: Int[Array, "batch slots"],
    absorbed_tokens: Int[Array, "batch absorbed"],
    target_slots: Int[Array, "batch absorbed"],
    num_tokens: int,
) -> Assignment:
    """Keep one token per slot, let slots absorb tokens, and drop the rest.

    kept_tokens: in slot order
    absorbed_tokens: no token twice
    num_tokens: before the step
    """
    n_out = kept_tokens.shape[1]
    kept_slots = jnp.broadcast_to(jnp.arange(n_out, dtype=jnp.int32), kept_tokens.shape)
    # [batch, 1, listed], the kept tokens first
    tokens = jnp.concatenate((kept_tokens, absorbed_tokens), axis=1)[:, None, :]
    slots = jnp.concatenate((kept_slots, target_slots), axis=1)[:, None, :]
    # DROPPED is below all slots, so a maximum finds the slot of a listed token.
    is_listed = tokens == jnp.arange(num_tokens, dtype=jnp.int32)[None, :, None]
    slot_of_token = jnp.max(jnp.where(is_listed, slots, DROPPED), axis=-1)
    return Assignment(slot_of_token, n_out=n_out)
