"""TokenLearner: learned summaries replace all tokens (Ryoo et al., NeurIPS 2021)."""

import dataclasses
from typing import Self, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from imagepiece_jax.common.checks import option
from imagepiece_jax.kernels.array_shapes import TokenRows
from imagepiece_jax.reduction.block_plan import KeepFixed, Step
from imagepiece_jax.reduction.methods.method import Method, ModelFacts
from imagepiece_jax.reduction.reducers import Reducer
from imagepiece_jax.reduction.schedules import find_falls, round_half_up
from imagepiece_jax.reduction.state import Mixing


class Scores(nn.Module):
    """MLP scores for the S new tokens, in float32."""

    num_tokens: int
    bottleneck_dim: int = 64

    @nn.compact
    def __call__(self, x: TokenRows) -> Float[Array, "batch tokens slots"]:
        init = nn.initializers.xavier_uniform()
        x = x.astype(jnp.float32)
        x = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name="norm")(x)
        x = nn.Dense(self.bottleneck_dim, kernel_init=init, name="fc1")(x)
        x = nn.gelu(x, approximate=True)
        return nn.Dense(self.num_tokens, kernel_init=init, name="fc2")(x)


class MlpLearner(nn.Module, Reducer):
    """Version 1.1: new tokens are means of all tokens, weighted by softmax scores."""

    num_tokens: int
    bottleneck_dim: int = 64

    @nn.compact
    def __call__(self, inputs, counts, train=False):
        # [batch, tokens, slots]
        scores = Scores(self.num_tokens, self.bottleneck_dim, name="scores")(inputs.x)
        return Mixing(jax.nn.softmax(jnp.swapaxes(scores, 1, 2), axis=-1))

    @nn.nowrap
    def extra_macs(self, n_in: int, embed_dim: int, num_heads: int) -> int:
        score_macs = self.bottleneck_dim * (embed_dim + self.num_tokens)
        return n_in * (score_macs + self.num_tokens * embed_dim)


@dataclasses.dataclass(frozen=True)
class TokenLearner(Method):
    """Before `block`, replace all image tokens by `num_tokens` learned tokens."""

    amount_fields = ("num_tokens", "block")
    ratio_field = "block"

    num_tokens: int = option(16, least=1)
    block: int = option(7, least=0)  # the first block with the new tokens
    bottleneck_dim: int = option(64, least=1)  # width of the scoring MLP

    def scale_schedule(self, ratio: float, facts: ModelFacts) -> Self:
        # A larger ratio moves the step to an earlier block. A ratio between two blocks'
        # ratios gives more new tokens, for a cost in between.
        depth = facts.depth
        exact_block = max(1.0, (1 - ratio) * depth)
        block = min(depth - 1, int(exact_block))
        fraction = min(1.0, exact_block - block)
        # This many more new tokens cost as much as one more block with all patches.
        num_tokens_per_block = (facts.patches - self.num_tokens) / (depth - block)
        num_tokens = self.num_tokens + round_half_up(fraction * num_tokens_per_block)
        return dataclasses.replace(self, block=block, num_tokens=num_tokens)

    def steps(self, facts: ModelFacts) -> tuple[Step, ...]:
        count_after_block = {self.block: self.num_tokens}
        if self.counts is not None:
            count_after_block = find_falls(cast(tuple, self.counts), facts.patches)
        steps = []
        for block, num_tokens in count_after_block.items():
            reducer = MlpLearner(num_tokens, self.bottleneck_dim)
            steps.append(Step(block, reducer, KeepFixed(num_tokens), site="pre"))
        return tuple(steps)
