"""ImagePiece + DynamicViT: retokenize, and where it prunes a learned score decides.

Training by "mask" removes nothing at the prune steps and draws masks, as DynamicViT
does; by "topk" it removes what evaluation would, by scores with noise, and is faster.
"""

import dataclasses
import itertools
import operator

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.common.fields import choice
from imagepiece_jax.reduction import token_selector
from imagepiece_jax.reduction.layer_plan import Step
from imagepiece_jax.reduction.methods.dynamicvit import KeepPredictor, LearnedSelection
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece
from imagepiece_jax.reduction.reducers import keep_highest
from imagepiece_jax.reduction.token_counts import Keep


class NoisyTopK(KeepPredictor):
    """Keep what a learned score ranks highest, in training after Gumbel noise.

    There a kept token's factor is 1 with the gradient of its keep probability.
    """

    @nn.compact
    def __call__(self, taps, counts, train=False):
        score = token_selector.KeepScores(name="scores")(taps.x, taps.mask)[..., 0]
        if not train:
            return keep_highest(score, counts.n_out)
        noisy = score + token_selector.gumbel(taps.rng, score.shape[1:])
        factor = token_selector.straight_through(jnp.ones_like(score), jnp.exp(score))
        chosen = keep_highest(jax.lax.stop_gradient(noisy), counts.n_out)
        return chosen.replace(weight=factor, mean=False)

    @nn.nowrap
    def draws(self, counts, train):
        return train


@dataclasses.dataclass(frozen=True)
class ImagePieceDynamicViT(ImagePiece, LearnedSelection):
    """ImagePiece's steps; those that prune keep as many, by a learned score."""

    mode: str = choice("mask", ("mask", "topk"))  # training masks or removes tokens
    # The score reads tokens before the MLP, or before the block.
    predictor_pos: str = choice("mid", ("mid", "pre"))

    def prune_step(self, block):
        """A step that prunes by a learned score; mode "mask" masks while training."""
        reducer = NoisyTopK()
        when_masked = None
        if self.mode == "mask":
            reducer = KeepPredictor()
            when_masked = 0
        rule = Keep(self.keep_rate)
        return Step(block, reducer, rule, self.predictor_pos, when_masked)

    def target_shares(self, plan):
        """Share that evaluation keeps up to each masking step, merges aside."""
        shares = []
        for layer in plan:
            evaluation = layer.counts and layer.counts.evaluation
            if evaluation:
                shares.append(evaluation.n_out / evaluation.n_in)
        return [*itertools.accumulate(shares, operator.mul)]
