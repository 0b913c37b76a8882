"""ImagePiece + DynamicViT: ImagePiece's steps, pruned by a learned score.

Training in the mode "mask" masks tokens at the prune steps and prunes no token, like
DynamicViT. Training in the mode "topk" removes the same number of tokens as evaluation,
by noisy scores, and is faster.
"""

import dataclasses
import itertools
import operator

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.common.checks import option
from imagepiece_jax.reduction import token_selector
from imagepiece_jax.reduction.block_plan import BlockPlan, KeepShare, Step, StepCounts
from imagepiece_jax.reduction.methods.dynamicvit import KeepPredictor, LearnedSelection
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece
from imagepiece_jax.reduction.reducers import keep_highest


class NoisyTopK(KeepPredictor):
    """Keep tokens with the highest learned scores, with Gumbel noise in training."""

    @nn.compact
    def __call__(self, inputs, counts, train=False):
        # Log probabilities [batch, tokens, (keep, drop)], of which the first ranks
        scores = token_selector.KeepScores(name="scores")(inputs.x, inputs.mask)
        log_keep = scores[..., 0]
        if not train:
            return keep_highest(log_keep, counts.n_out)
        noise = token_selector.draw_gumbel_noise(inputs.rng, log_keep.shape[1:])
        noisy_score = log_keep + noise
        # A staying token is multiplied by 1, with the gradient of its probability to
        # be kept, so the scores learn. A mean would divide by the weight again.
        probability = jnp.exp(log_keep)
        weight = token_selector.straight_through(jnp.ones_like(log_keep), probability)
        assignment = keep_highest(jax.lax.stop_gradient(noisy_score), counts.n_out)
        return dataclasses.replace(assignment, weight=weight, mean=False)

    @nn.nowrap
    def draws_random(self, counts: StepCounts, train: bool) -> bool:
        return train


@dataclasses.dataclass(frozen=True)
class ImagePieceDynamicViT(ImagePiece, LearnedSelection):
    """ImagePiece's steps, with prune steps that rank by a learned score."""

    # training masks tokens ("mask") or removes tokens ("topk")
    mode: str = option("mask", ("mask", "topk"))

    def prune_step(self, block: int, score: str) -> Step:
        # `score` ranks for merges alone: prune steps learn their own. In the mode
        # "mask", masked training removes no token at this step.
        rule = KeepShare(self.keep_rate)
        if self.mode == "mask":
            return Step(block, KeepPredictor(), rule, added_when_masked=0)
        return Step(block, NoisyTopK(), rule)

    def target_kept_shares(self, plan: tuple[BlockPlan, ...]) -> list[float]:
        # Shares kept in evaluation by the prune steps alone; merges do not count. Every
        # mask includes the masks before it, so shares multiply.
        shares = []
        for block_plan in plan:
            evaluation_counts = block_plan.counts and block_plan.counts.evaluation
            if evaluation_counts:
                shares.append(evaluation_counts.n_out / evaluation_counts.n_in)
        return [*itertools.accumulate(shares, operator.mul)]
