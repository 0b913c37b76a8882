"""Peaks: tokens stay that are attended, and unlike every more attended token.

The distance to higher-scored tokens is that of density peaks (Rodriguez and Laio,
Science 2014), with attention in place of density. RESTORE (Cho et al., ICML 2026) has
it for tokens of language models, with a sum of cosines as density. BAT (Long et al.,
CVPR 2023) keeps attended and diverse tokens, too. Tokens join as in DiffRate (Chen et
al., ICCV 2023), and attention weighs their mean, as in EViT's fused token (Liang et
al., ICLR 2022).
"""

import dataclasses

import jax
import jax.numpy as jnp

from imagepiece_jax.kernels.array_shapes import TokenPairs, TokenValues
from imagepiece_jax.kernels.merging import LEAST_WEIGHT
from imagepiece_jax.kernels.ranking import distance_to_higher, rank_tokens
from imagepiece_jax.kernels.similarity import all_cosines
from imagepiece_jax.reduction.block_plan import Step
from imagepiece_jax.reduction.methods.method import InStages, ModelFacts
from imagepiece_jax.reduction.reducers import Ranking, join_kept
from imagepiece_jax.reduction.state import Assignment


@dataclasses.dataclass(frozen=True)
class KeepPeaks(Ranking):
    """Keep the tokens with the highest product of score and distance; merge the rest.

    A token's distance is 1 minus its highest cosine to a token with a higher score; the
    token with the highest score has the distance 2. Every other token joins the kept
    token of its highest cosine. Features are means weighted by score.
    """

    def __call__(self, inputs, counts, train=False):
        # [batch, tokens]
        score = jax.lax.stop_gradient(self.token_scores(inputs, counts))
        size = inputs.attn_size
        # Tokens removed by a mask (floats, 0 or 1, with a gradient) leave first.
        if inputs.mask is not None:
            score = jnp.where(inputs.mask > 0.5, score, 0.0)
            size = jnp.where(inputs.mask > 0.5, size, 0.0)
        cosines = all_cosines(inputs.x, inputs.all_x)
        peak_ranks = rank_tokens(peak_values(score, cosines))
        slot_of_token, cosine_to_kept = join_kept(cosines, peak_ranks, counts.n_out)
        # A weight above 0 keeps the mean of unattended tokens.
        weight = jnp.maximum(score, LEAST_WEIGHT)
        attn_size = size * cosine_to_kept
        return Assignment(slot_of_token, weight, attn_size, n_out=counts.n_out)


def peak_values(score: TokenValues, cosines: TokenPairs) -> TokenValues:
    """Multiply token scores by the distance to higher-scored tokens."""
    return score * distance_to_higher(cosines, score)


@dataclasses.dataclass(frozen=True)
class Peaks(InStages):
    """At every block in `blocks`, keep a share of the tokens and merge the rest.

    The score "auto" is attention from the class token and from the mean query, or from
    the mean query alone if the head does not read the class token.
    """

    default_prop_attn = True

    score: str = "auto"

    def score_for(self, facts: ModelFacts) -> str:
        if self.score != "auto":
            return self.score
        return "class_and_mean" if facts.pool == "token" else "mean"

    def steps(self, facts: ModelFacts) -> tuple[Step, ...]:
        return self.stage_steps(facts, KeepPeaks(score=self.score_for(facts)))
