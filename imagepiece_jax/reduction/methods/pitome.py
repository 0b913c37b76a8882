"""PiToMe: merge tokens similar to many tokens (Tran et al., NeurIPS 2024)."""

import dataclasses
import math

import jax
import numpy as np

from imagepiece_jax.kernels.ranking import invert_order, rank_tokens
from imagepiece_jax.reduction.block_plan import KeepAtLeastHalf, Step, StepCounts
from imagepiece_jax.reduction.methods.method import KeepingShare, ModelFacts
from imagepiece_jax.reduction.reducers import Ranking, join_most_similar, merge_in_place
from imagepiece_jax.reduction.state import Assignment, ReducerInputs


@dataclasses.dataclass(frozen=True)
class ByEnergy(Ranking):
    """Merge high-energy tokens, which are similar to many tokens, in pairs.

    By falling energy, tokens alternate between sides A and B. Tokens of A merge into
    the most similar tokens of B.
    """

    # True: compare only the tokens with the highest energies, twice as many as merge,
    # so all of side A merges. False: compare all tokens; the most similar pairs merge.
    protect: bool
    metric: str = "key"
    score: str = dataclasses.field(default="energy", kw_only=True)

    def __call__(
        self, inputs: ReducerInputs, counts: StepCounts, train: bool = False
    ) -> Assignment:
        uniqueness = jax.lax.stop_gradient(self.token_scores(inputs, counts))
        metric = jax.lax.stop_gradient(inputs.metric)
        num_merges = counts.n_in - counts.n_out
        ranks = rank_tokens(-uniqueness)
        num_compared = counts.n_in
        num_joining = num_merges
        if self.protect:
            num_compared = 2 * num_merges
            num_joining = None  # all of side A
        side_a = invert_order(ranks, np.arange(0, num_compared, 2))
        side_b = invert_order(ranks, np.arange(1, num_compared, 2))
        absorbed_tokens, partner_tokens = join_most_similar(
            metric, side_a, side_b, num_joining
        )
        return merge_in_place(absorbed_tokens, partner_tokens, counts)


@dataclasses.dataclass(frozen=True)
class PiToMe(KeepingShare):
    """Keep ceil(keep_rate * n) of n image tokens in every block, at least half.

    The first half of the blocks compares all tokens. The second half compares only
    high-energy tokens, which protects the rest.
    """

    keep_rate: float = 0.9125  # of the image tokens, in every block
    metric: str = "key"  # for pairs; energies always compare keys

    def steps(self, model: ModelFacts) -> tuple[Step, ...]:
        half = math.ceil(model.depth / 2)
        steps = []
        for block in range(model.depth):
            reducer = ByEnergy(block >= half, self.metric)
            steps.append(Step(block, reducer, KeepAtLeastHalf(self.keep_rate)))
        return tuple(steps)
