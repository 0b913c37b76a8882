"""SPViT: heads vote for staying tokens; the rest becomes a package (ECCV 2022).

A package is the mean of a step's dropped tokens, weighted by their probability of being
kept (Kong et al.). Packages are never dropped.
"""

import dataclasses
import functools
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Shaped

from imagepiece_jax.common.checks import check_range
from imagepiece_jax.errors import InputError
from imagepiece_jax.kernels.array_shapes import TokenValues
from imagepiece_jax.kernels.gelu import gelu
from imagepiece_jax.kernels.ranking import rank_tokens
from imagepiece_jax.reduction import token_selector
from imagepiece_jax.reduction.block_plan import KeepInitialShare, Step
from imagepiece_jax.reduction.methods import method
from imagepiece_jax.reduction.methods.dynamicvit import LearnedSelection
from imagepiece_jax.reduction.reducers import MaskingReducer, keep_and_sum
from imagepiece_jax.reduction.state import Masking


class Selector(nn.Module, MaskingReducer):
    """Keep the tokens scored highest by the heads; the last token packs the rest.

    Masked training draws a random mask, and appends the package.
    """

    @nn.compact
    def __call__(self, inputs, counts, train=False):
        batch_size, n, dim = inputs.x.shape
        head_dim = dim // inputs.num_heads
        head_features = inputs.x.reshape(batch_size, n, inputs.num_heads, head_dim)
        network = token_selector.KeepScores(name="scores")
        head_scores = network(head_features, inputs.mask)  # [B, n, H, (keep, drop)]
        head_weights = self._weigh_heads(head_features)[..., None]
        # Of being kept, [B, n]: the heads' weighted mean
        probability = jnp.sum(head_weights * jnp.exp(head_scores), axis=2)[..., 0]
        num_packages = counts.stage - 1  # of earlier steps; they are the last tokens
        is_package = (jnp.arange(n) >= n - num_packages)[None]
        if counts.n_out < counts.n_in:  # else masked training, where no token leaves
            score = jnp.where(is_package, jnp.inf, probability)
            is_kept = rank_tokens(score) < counts.n_out - 1
            weight = package_weights(probability, ~is_kept)
            return keep_and_sum(is_kept, weight, counts.n_out)
        token_scores = jnp.sum(head_weights * head_scores, axis=2)
        keep = token_selector.draw_mask(token_scores, inputs.mask, inputs.rng)
        keep = jnp.where(is_package, 1.0, keep)
        mask_before = inputs.mask
        if mask_before is None:
            mask_before = jnp.ones_like(keep)
        weight = package_weights(probability, mask_before - keep)
        tokens = inputs.x.astype(jnp.float32)  # [batch, n, dim]
        package = jnp.einsum("bn,bnd->bd", weight, tokens, precision="highest")
        return Masking(keep, append=package)

    def _weigh_heads(self, head_features):
        """Head weights from the heads' mean features, with sum 1."""
        num_heads = head_features.shape[2]  # [batch, tokens, heads, head_dim]
        make_dense = functools.partial(nn.Dense, kernel_init=token_selector.DENSE_INIT)
        head_means = jnp.mean(head_features, axis=-1, dtype=jnp.float32)  # [B, n, H]
        hidden = gelu(make_dense(max(1, num_heads // 2), name="vote_in")(head_means))
        votes = make_dense(num_heads, name="vote_out")(hidden)
        # sigmoid(v) / sum sigmoid(v) of votes v, even where all sigmoids underflow
        return jax.nn.softmax(jax.nn.log_sigmoid(votes))

    @nn.nowrap
    def extra_macs(self, n_in: int, embed_dim: int, num_heads: int) -> int:
        vote_macs = 2 * num_heads * max(1, num_heads // 2)
        head_macs = token_selector.score_macs(n_in, embed_dim // num_heads)
        return n_in * vote_macs + num_heads * head_macs


def package_weights(
    probability: TokenValues, drop_mask: Shaped[Array, "batch tokens"]
) -> TokenValues:
    """Weights of a package's mean, in float32; all 0 if no token is dropped.

    probability: probability of being kept
    drop_mask: 1 or True for dropped tokens
    """
    weight = probability * drop_mask.astype(jnp.float32)
    weight_sum = jnp.sum(weight, axis=1, keepdims=True)
    # Without dropped tokens the divisor is 1: with DIVISION_EPS alone, the gradient
    # would be a million.
    return weight / jnp.where(
        weight_sum > 0, weight_sum + token_selector.DIVISION_EPS, 1.0
    )


@dataclasses.dataclass(frozen=True)
class SPViT(LearnedSelection):
    """Before every block in `blocks`, keep a share of the tokens, and add a package."""

    amount_fields = ("keep_rates", "blocks")

    # shares of the initial tokens that stay, one per entry of `blocks`
    keep_rates: tuple[float, ...] = (0.617, 0.369, 0.137)
    blocks: tuple[int, ...] = (3, 6, 9)

    def __post_init__(self) -> None:
        super().__post_init__()
        rates = self.keep_rates
        blocks = self.blocks
        method.check_entries("blocks", blocks)
        has_rates = isinstance(rates, tuple) and len(rates) == len(blocks)
        blocks_rise = [*blocks] == sorted(blocks)
        if not (has_rates and blocks_rise and [*rates] == sorted(rates, reverse=True)):
            raise InputError(
                f"keep_rates is {rates} at blocks {blocks}; blocks must rise, and each "
                "have a rate, which must not"
            )
        for rate in rates:
            check_range("an entry of keep_rates", rate, 0, 1)

    def scale_schedule(self, ratio: float, facts: method.ModelFacts) -> Self:
        # All shares get a common factor, and are at most 1. With ratio 0 all reach 1,
        # except shares of 0, which no factor raises.
        least_rate = min((rate for rate in self.keep_rates if rate), default=1.0)
        scale = (1 - ratio) / least_rate
        rates = tuple(round(min(1.0, scale * rate), 6) for rate in self.keep_rates)
        blocks = method.fit_blocks(self, facts.depth)
        return dataclasses.replace(self, keep_rates=rates, blocks=blocks)

    def steps(self, facts: method.ModelFacts) -> tuple[Step, ...]:
        block_rates = zip(self.blocks, self.keep_rates, strict=True)
        if self.counts is not None:  # the counts replace the rates
            block_rates = [(index, 0.0) for index in range(facts.depth)]
        steps = []
        for block, rate in block_rates:
            rule = KeepInitialShare(rate, packages=True)
            steps.append(Step(block, Selector(), rule, site="pre", added_when_masked=1))
        return tuple(steps)

    def kept_token_shares(self, masks: list[jax.Array]) -> list[jax.Array]:
        # Shares are means over this device's whole batch, because images may keep
        # different numbers of tokens. Packages do not count.
        num_patches = masks[0].shape[1]
        return [jnp.mean(mask[:, :num_patches]) for mask in masks]

    def backbone_rate(self, lr: Any, peak_lr: float) -> Any:
        # The rate is capped at `backbone_lr` times the peak rate.
        return jnp.minimum(self.backbone_lr * peak_lr, lr)
