"""ImagePiece: merge unimportant tokens, reassess them, then prune (AAAI 2025)."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagepiece_jax.common.checks import option, refuse_any
from imagepiece_jax.errors import InputError
from imagepiece_jax.kernels import ranking
from imagepiece_jax.kernels.array_shapes import TokenIndices
from imagepiece_jax.kernels.similarity import cosine_similarity
from imagepiece_jax.reduction.block_plan import (
    KeepShare,
    MergeCandidates,
    Step,
    StepCounts,
)
from imagepiece_jax.reduction.methods.method import Method, ModelFacts, check_entries
from imagepiece_jax.reduction.reducers import Ranking, TopK, merge_most_similar
from imagepiece_jax.reduction.state import ReducerInputs


@dataclasses.dataclass(frozen=True)
class Retokenize(Ranking):
    """Merge unimportant tokens into similar tokens (ImagePiece, step II).

    Candidates are the lowest-scored tokens (by class attention in the paper). By
    falling score, candidates alternate between sides A and B. The most similar tokens
    of A merge into their partners in B. The token order is kept.
    """

    parity: int = 0  # index of the first candidate on side A, 0 or 1
    metric: str = "key"  # the feature to compare: "key", "query", "value" or "token"
    size_weighting: bool = True  # merged tokens are means over patches, not tokens

    def check_fits(self, grid: tuple[int, int] | None, counts: StepCounts) -> None:
        # At most half the candidates can merge; only MergeCandidates sets their number.
        num_merges = counts.n_in - counts.n_out
        sentence = f"Retokenize merges {num_merges} of {counts.candidates} candidates"
        refuse_any((num_merges > (counts.candidates or 0) // 2, sentence))

    def __call__(self, inputs, counts, train=False):
        score = jax.lax.stop_gradient(self.token_scores(inputs, counts))
        num_candidates = counts.candidates or 0  # set by the rule MergeCandidates
        first_rank = counts.n_in - num_candidates  # the rest has higher scores
        candidate_ranks = np.arange(first_rank, counts.n_in)
        ranks_a = candidate_ranks[self.parity :: 2]
        ranks_b = candidate_ranks[1 - self.parity :: 2]
        candidates = ranking.invert_order(  # [batch, candidates], side A first
            ranking.rank_tokens(score), np.concatenate([ranks_a, ranks_b])
        )
        num_a = len(ranks_a)
        similarity = self.compare_sides(inputs, candidates, num_a)
        sides = candidates[:, :num_a], candidates[:, num_a:]
        assignment = merge_most_similar(similarity, *sides, counts)
        return dataclasses.replace(assignment, by_size=self.size_weighting)

    def compare_sides(
        self, inputs: ReducerInputs, candidates: TokenIndices, num_a: int
    ) -> Float[Array, "batch {num_a} side_b"]:
        """Compare side A, the first `num_a` candidates, with side B."""
        metric = jax.lax.stop_gradient(inputs.metric)
        candidate_metric = ranking.gather_rows(metric, candidates).astype(jnp.float32)
        return cosine_similarity(candidate_metric)[:, :num_a, num_a:]


@dataclasses.dataclass(frozen=True)
class ImagePiece(Method):
    """Merge the least attended tokens in some blocks, and prune them in others."""

    amount_fields = ("keep_rate", "merge_ratio")

    keep_rate: float = option(0.8, least=0, most=1)  # share kept by a prune step
    merge_ratio: float = option(0.08, least=0, most=1)  # share merged by a merge step
    # share of least attended image tokens that may merge
    candidate_ratio: float = option(0.3, least=0, most=1)
    merge_blocks: tuple[int, ...] | None = None  # None: 0 1 3 4 6 7 of 12
    prune_blocks: tuple[int, ...] | None = None  # None: 2 5 8 of 12
    parity: int = option(0, (0, 1))  # index of the first candidate that may leave
    metric: str = "key"
    size_weighting: bool = option(True, (True, False))  # means are over patches
    score: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("merge_blocks", "prune_blocks"):
            if getattr(self, name) is not None:
                check_entries(name, getattr(self, name))

    def scale_schedule(self, ratio: float, facts: ModelFacts) -> Self:
        # Both rates are scaled in proportion: with ratio 1 the larger of 1 - keep_rate
        # and merge_ratio becomes 1. Without prune blocks, only merge_ratio changes.
        drop_rate = 1 - self.keep_rate
        if self.prune_blocks == ():
            return dataclasses.replace(self, merge_ratio=round(ratio, 6))
        factor = ratio / max(drop_rate, self.merge_ratio, 1e-6)  # both may be 0
        # Six digits, which a reduction's text shows
        keep_rate = round(1 - drop_rate * factor, 6)
        merge_ratio = round(self.merge_ratio * factor, 6)
        return dataclasses.replace(self, keep_rate=keep_rate, merge_ratio=merge_ratio)

    def steps(self, facts: ModelFacts) -> tuple[Step, ...]:
        merge_blocks, prune_blocks = self.merge_blocks, self.prune_blocks
        if merge_blocks is None:
            merge_blocks, _ = self.scheduled_blocks(facts.depth)
        if prune_blocks is None:
            _, prune_blocks = self.scheduled_blocks(facts.depth)
        score = self.score_for(facts)
        steps = [self.merge_step(block, score) for block in merge_blocks]
        steps += [self.prune_step(block, score) for block in prune_blocks]
        return tuple(sorted(steps, key=lambda step: step.block))

    def merge_step(self, block: int, score: str) -> Step:
        pair_fields = (self.parity, self.metric, self.size_weighting)
        rule = MergeCandidates(self.merge_ratio, self.candidate_ratio)
        return Step(block, Retokenize(*pair_fields, score=score), rule)

    def prune_step(self, block: int, score: str) -> Step:
        """Make a Step that prunes tokens; combinations of methods override this."""
        return Step(block, TopK(score=score), KeepShare(self.keep_rate))

    def scheduled_blocks(self, depth: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """List the paper's (merge blocks, prune blocks) for a depth.

        Raises InputError for a depth below 4.
        """
        # Merge, merge, prune, repeated depth // 4 times; the last blocks stay dense. We
        # read the paper's layer numbers as counted from 1: its speeds agree with this
        # (docs/imagepiece.md).
        num_cycles = depth // 4
        if num_cycles == 0:
            raise InputError(f"a depth of {depth} needs merge_blocks and prune_blocks")
        merge_blocks = []
        prune_blocks = []
        for block in range(0, 3 * num_cycles, 3):
            merge_blocks += [block, block + 1]
            prune_blocks.append(block + 2)
        return tuple(merge_blocks), tuple(prune_blocks)
