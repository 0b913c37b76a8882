"""MCTF: fuse tokens by several criteria at once (Lee et al., CVPR 2024).

The authors' training, with a second pass at a random reduction, is not included.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagepiece_jax.common.checks import check_range, option
from imagepiece_jax.kernels import ranking
from imagepiece_jax.kernels.array_shapes import TokenRows, TokenValues
from imagepiece_jax.kernels.similarity import dot_products, unit_vectors
from imagepiece_jax.reduction import block_plan
from imagepiece_jax.reduction.block_plan import RemoveAtMostHalf, Step
from imagepiece_jax.reduction.methods import method
from imagepiece_jax.reduction.reducers import Ranking, keep_and_join

FEWEST_TOKENS = 10  # tokens that stay of a fixed number `r`, class token included


@dataclasses.dataclass(frozen=True)
class FusionRule(RemoveAtMostHalf):
    """`r` tokens leave, or the share `r` < 1; at most half leave.

    As in the authors' code, FEWEST_TOKENS bounds a number, and a share only where at
    most this many are left.
    """

    r: float  # a number of tokens, or below 1 a share

    def count_removed(self, n: int) -> int:
        # The authors bound `r`, a share, too, before they look whether it is below 1.
        amount = min(self.r, n + 1 - FEWEST_TOKENS)  # n is without the class token
        return block_plan.exact_floor(n * amount) if amount < 1 else int(amount)

    def fewest_tokens(self, n: int, stage: int) -> int:
        return max(super().fewest_tokens(n, stage), min(n, FEWEST_TOKENS - 1))


@dataclasses.dataclass(frozen=True)
class Fusion(Ranking):
    """Fuse tokens at even and odd positions, in two halves.

    First, even tokens join their best odd partners. Then odd tokens, with all tokens
    they absorbed, join the best remaining even tokens. A partner's value is the product
    of similarity, 1 / score and 1 / size, with exponents 1 / temperature. Features and
    attention map rows are weighted by score times size.
    """

    similarity: float = 1.0  # temperature
    attention: float = 20.0  # temperature of the score
    sizes: float = 40.0  # temperature
    score: str = dataclasses.field(default="received", kw_only=True)
    metric = "token"

    def __call__(self, inputs, counts, train=False):
        num_merges = counts.n_in - counts.n_out
        x, score, size = jax.lax.stop_gradient(
            (inputs.metric, self.token_scores(inputs, counts), inputs.attn_size)
        )
        tiny = jnp.finfo(jnp.float32).tiny
        score = jnp.maximum(score, tiny)  # it can underflow to 0, and is a divisor
        # Indices of the first image tokens at an even and at an odd position. Positions
        # count the prefix, too.
        first_even = inputs.num_prefix % 2
        first_odd = 1 - first_even
        even_to_odd = self.fusion_values(x, score, size, first_even)
        # The first half of the leaving tokens: even tokens join odd tokens.
        num_joining_even = num_merges // 2
        even_ranks, odd_partners = ranking.rank_rows(even_to_odd)  # [batch, even] both
        joining_even = ranking.invert_order(even_ranks, num_joining_even)
        joined_odd = ranking.gather_rows(odd_partners, joining_even)
        slot_of_even = ranking.index_kept_tokens(even_ranks >= num_joining_even)
        staying_even = ranking.invert_order(
            slot_of_even, even_ranks.shape[1] - num_joining_even
        )
        # The second half: odd tokens join the remaining even tokens, whose slots come
        # first. Then come the odd tokens by the falling value of their best partners.
        odd_to_even = ranking.gather_rows(even_to_odd, staying_even).transpose(0, 2, 1)
        odd_ranks, partner_slots = ranking.rank_rows(odd_to_even)  # [batch, odd] both
        num_joining_odd = num_merges - num_joining_even
        is_leaving = odd_ranks < num_joining_odd
        slot_of_staying = staying_even.shape[1] - num_joining_odd + odd_ranks
        slot_of_odd = jnp.where(is_leaving, partner_slots, slot_of_staying)
        ranked_odd = ranking.invert_order(odd_ranks, odd_ranks.shape[1])
        joining_odd = ranked_odd[:, :num_joining_odd]
        staying_odd = ranked_odd[:, num_joining_odd:]
        # Places are turned into tokens. An even token goes to its odd partner's slot.
        kept_tokens = jnp.concatenate(
            [first_even + 2 * staying_even, first_odd + 2 * staying_odd], axis=1
        )
        absorbed_tokens = jnp.concatenate(
            [first_even + 2 * joining_even, first_odd + 2 * joining_odd], axis=1
        )
        odd_targets = jnp.concatenate([joined_odd, joining_odd], axis=1)
        target_slots = ranking.gather_rows(slot_of_odd, odd_targets)
        weight = score * size / jnp.max(size, axis=1, keepdims=True)
        weight = jnp.maximum(weight, tiny)  # else a mean could be 0 / 0
        tokens = (kept_tokens, absorbed_tokens)
        assignment = keep_and_join(*tokens, target_slots, counts.n_in)
        return dataclasses.replace(assignment, weight=weight)

    def fusion_values(
        self, x: TokenRows, score: TokenValues, size: TokenValues, first_even: int
    ) -> Float[Array, "batch even odd"]:
        """Fusion values of even and odd tokens, from index `first_even` on."""
        # A power of a product is a product of powers: of vectors, not of matrices.
        # Ratios to the least value are at most 1, so no power overflows.
        factor: Any = 1.0
        for value, temperature in ((score, self.attention), (size, self.sizes)):
            min_value = jnp.min(value, axis=1, keepdims=True)
            factor *= (min_value / value) ** (1 / temperature)
        unit = unit_vectors(x)
        cosines = dot_products(unit[:, first_even::2], unit[:, 1 - first_even :: 2])
        similarity = ((cosines + 1) / 2) ** (1 / self.similarity)  # of 0 to 1
        even_factor = factor[:, first_even::2, None]
        return similarity * even_factor * factor[:, None, 1 - first_even :: 2]


@dataclasses.dataclass(frozen=True)
class MCTF(method.RemovalPerBlock):
    """Fuse `r` tokens away (r < 1: this share) in every block in `blocks`."""

    amount_fields = ("r", "blocks")

    # number of tokens lost per block; below 1: their share
    r: float = 16
    blocks: tuple[int, ...] | None = None  # None: all blocks except the first
    # Temperatures of the criteria; a criterion's exponent is 1 / temperature.
    similarity: float = option(1.0, above=0)  # temperature: similar tokens fuse
    # temperature: tokens with little attention fuse
    attention: float = option(20.0, above=0)
    sizes: float = option(40.0, above=0)  # temperature: small tokens fuse
    score: str = "received"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks is not None:
            method.check_entries("blocks", self.blocks, least=0)
        check_range("r", self.r, 0)
        if self.r >= 1:
            check_range("r", self.r, whole=True)

    def scale_schedule(self, ratio: float, facts: method.ModelFacts) -> Self:
        if 0 < self.r < 1:
            return dataclasses.replace(self, r=min(ratio, 0.999999))  # 1: one token
        return super().scale_schedule(ratio, facts)

    def removed_counts(self, depth: int) -> Sequence[int]:
        fusing_blocks = self.list_fusing_blocks(depth)
        return [int(block in fusing_blocks) for block in range(depth)]

    def list_fusing_blocks(self, depth: int) -> Sequence[int]:
        """List the fusing blocks. Raises InputError for a block outside the model."""
        if self.counts is not None:
            return range(depth)
        if self.blocks is None:
            return range(1, depth)  # as in the authors' code
        method.check_entries("blocks", self.blocks, least=0, most=depth - 1)
        return self.blocks

    def steps(self, facts: method.ModelFacts) -> tuple[Step, ...]:
        score = self.score_for(facts)
        reducer = Fusion(self.similarity, self.attention, self.sizes, score=score)
        rule = FusionRule(self.r)
        # With the score "received", tokens fuse inside attention, and the whole
        # attention map is computed. With another score, tokens fuse after attention.
        site = "attention" if score == "received" else "mid"
        blocks = self.list_fusing_blocks(facts.depth)
        return tuple(Step(block, reducer, rule, site=site) for block in blocks)
