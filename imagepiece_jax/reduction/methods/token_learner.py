"""TokenLearner: learned summaries replace all tokens (Ryoo et al., NeurIPS 2021)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.layer_plan import Step
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.reducers import Reducer
from imagepiece_jax.reduction.schedules import rounded
from imagepiece_jax.reduction.state import Mixing
from imagepiece_jax.reduction.token_counts import Fixed


def layer_norm(name):
    """Layer norm of TokenLearner's modules, which compute in float32 throughout."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)


class Scores(nn.Module):
    """An MLP that gives each token a score for each of the S new tokens.

    [B, n, D] -> [B, n, S] float32
    """

    num_tokens: int
    bottleneck_dim: int = 64

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.xavier_uniform()
        x = layer_norm("norm")(x.astype(jnp.float32))
        x = nn.Dense(self.bottleneck_dim, kernel_init=init, name="fc1")(x)
        x = nn.gelu(x, approximate=True)
        return nn.Dense(self.num_tokens, kernel_init=init, name="fc2")(x)


class MlpLearner(nn.Module, Reducer):
    """Version 1.1: each new token is a weighted mean of all tokens.

    The weights are the softmax of its scores over the tokens.
    """

    num_tokens: int
    bottleneck_dim: int = 64

    @nn.compact
    def __call__(self, taps, counts, train=False):
        scores = Scores(self.num_tokens, self.bottleneck_dim, name="scores")(taps.x)
        return Mixing(jax.nn.softmax(jnp.swapaxes(scores, 1, 2), axis=-1))

    @nn.nowrap
    def extra_macs(self, n_in, embed_dim, num_heads):
        """Scores of `n_in` tokens, and the weighted means."""
        scores = self.bottleneck_dim * (embed_dim + self.num_tokens)
        return n_in * (scores + self.num_tokens * embed_dim)


class ConvLearner(nn.Module, Reducer):
    """Version 1.0: each new token is a weighted sum of all tokens.

    The weights are sigmoids of four 3 x 3 convolutions over the grid of patches.
    """

    num_tokens: int
    pooling: str = "sum"  # "mean" divides the sum by the number of tokens

    def check_fits(self, grid, counts):
        """Check that `grid` (height, width) of tokens is there."""
        if grid is None:
            raise InputError(
                "version is 'v1.0', which needs a grid, but tokens are reduced before"
            )

    @nn.compact
    def __call__(self, taps, counts, train=False):
        self.check_fits(taps.grid, counts)
        batch, n, dim = taps.x.shape
        conv = functools.partial(nn.Conv, self.num_tokens, (3, 3), use_bias=False)
        x = layer_norm("norm")(taps.x.astype(jnp.float32))
        x = x.reshape(batch, *taps.grid, dim)
        for name in ("conv1", "conv2", "conv3"):
            x = nn.gelu(conv(name=name)(x), approximate=True)
        x = conv(name="conv4")(x).reshape(batch, n, self.num_tokens)
        gates = jnp.swapaxes(nn.sigmoid(x), 1, 2)
        if self.pooling == "mean":
            gates = gates / n
        return Mixing(gates)

    @nn.nowrap
    def extra_macs(self, n_in, embed_dim, num_heads):
        """Four convolutions at `n_in` positions, and the weighted sums."""
        width_in = embed_dim + 3 * self.num_tokens
        return n_in * self.num_tokens * (9 * width_in + embed_dim)


@dataclasses.dataclass(frozen=True)
class TokenLearner(Method):
    """Before `block`, `num_tokens` learned tokens replace all image tokens."""

    amounts = ("num_tokens", "block")
    strength_field = "block"

    num_tokens: int = 16
    block: int = 7  # the first block that sees the new tokens
    version: str = "v1.1"  # or "v1.0": convolutions and sigmoids
    bottleneck_dim: int = 64  # width of the scoring MLP of v1.1
    pooling: str = "sum"  # of v1.0, or "mean"

    def __post_init__(self):
        super().__post_init__()
        check_range("num_tokens", self.num_tokens, 1, whole=True)
        check_range("block", self.block, 0, whole=True)
        check_choice("version", self.version, ("v1.1", "v1.0"))
        check_range("bottleneck_dim", self.bottleneck_dim, 1, whole=True)
        check_choice("pooling", self.pooling, ("sum", "mean"))

    def scaled(self, strength, depth, patches):
        """The method at an earlier block.

        For a strength between those of two blocks there are more new tokens, so that
        the cost is in between, too.
        """
        fractional = max(1.0, (1 - strength) * depth)
        block = min(depth - 1, int(fractional))
        fraction = min(1.0, fractional - block)
        # So many more new tokens cost as much as one more block with all patches.
        tokens_for_a_block = (patches - self.num_tokens) / (depth - block)
        tokens = self.num_tokens + rounded(fraction * tokens_for_a_block)
        return dataclasses.replace(self, block=block, num_tokens=tokens)

    def step_at(self, block, depth, tokens):
        at_block = dataclasses.replace(
            self, block=block, num_tokens=tokens, counts=None
        )
        return at_block.steps(depth)[0]

    def steps(self, depth):
        if self.version == "v1.1":
            reducer = MlpLearner(self.num_tokens, self.bottleneck_dim)
        else:
            reducer = ConvLearner(self.num_tokens, self.pooling)
        return (Step(self.block, reducer, Fixed(self.num_tokens), site="pre"),)
