"""PiToMe: merge tokens similar to many tokens (Tran et al., NeurIPS 2024)."""

import dataclasses

import jax
import numpy as np

from imagepiece_jax.common.checks import option
from imagepiece_jax.kernels.ranking import gather_rows, invert_order, rank_tokens
from imagepiece_jax.kernels.similarity import cosine_similarity
from imagepiece_jax.reduction.block_plan import KeepAtLeastHalf, Step
from imagepiece_jax.reduction.methods.method import KeepingShare, ModelFacts
from imagepiece_jax.reduction.reducers import Ranking, merge_most_similar


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

    def __call__(self, inputs, counts, train=False):
        uniqueness = jax.lax.stop_gradient(self.token_scores(inputs, counts))
        metric = jax.lax.stop_gradient(inputs.metric)  # [batch, tokens, features]
        ranks = rank_tokens(-uniqueness)
        num_compared = counts.n_in
        if self.protect:
            num_compared = 2 * (counts.n_in - counts.n_out)
        side_a = invert_order(ranks, np.arange(0, num_compared, 2))
        side_b = invert_order(ranks, np.arange(1, num_compared, 2))
        metric_a, metric_b = gather_rows(metric, side_a), gather_rows(metric, side_b)
        similarity = cosine_similarity(metric_a, metric_b)
        return merge_most_similar(similarity, side_a, side_b, counts)


@dataclasses.dataclass(frozen=True)
class PiToMe(KeepingShare):
    """Keep ceil(keep_rate * n) of n image tokens in every block, at least half.

    The first half of the blocks compares all tokens. The second half compares only
    high-energy tokens, which protects the rest.
    """

    # of the image tokens, in every block
    keep_rate: float = option(0.9125, least=0, most=1)
    metric: str = "key"  # for pairs; energies always compare keys

    def steps(self, facts: ModelFacts) -> tuple[Step, ...]:
        rule = KeepAtLeastHalf(self.keep_rate)
        steps = []
        for block in range(facts.depth):
            reducer = ByEnergy(block >= facts.depth / 2, self.metric)
            steps.append(Step(block, reducer, rule))
        return tuple(steps)
