"""ToMe: merge similar tokens, a few in every block (Bolya et al., ICLR 2023)."""

import dataclasses
from collections.abc import Sequence

from imagepiece_jax.common.checks import option
from imagepiece_jax.reduction.block_plan import RemoveCount, Step
from imagepiece_jax.reduction.methods.method import ModelFacts, RemovalPerBlock
from imagepiece_jax.reduction.reducers import Bipartite


@dataclasses.dataclass(frozen=True)
class ToMe(RemovalPerBlock):
    """Merge `r` tokens away in every block, at most half the image tokens.

    `reducers.Bipartite` finds the pairs.
    """

    amount_fields = ("r", "inflection")

    r: int = option(13, least=0)  # number of tokens merged away per block, on average
    # Slope over the blocks: -1 falls from 2 r in the first block to 0 in the last, and
    # 1 rises from 0 to 2 r.
    inflection: float = option(0.0, least=-1, most=1)
    metric: str = "key"

    def removed_counts(self, depth: int) -> Sequence[int]:
        first_count = int(self.r * (1 - self.inflection))
        last_count = 2 * self.r - first_count
        rise = last_count - first_count
        last_block = max(depth - 1, 1)
        return tuple(first_count + block * rise // last_block for block in range(depth))

    def steps(self, facts: ModelFacts) -> tuple[Step, ...]:
        rules = map(RemoveCount, self.removed_counts(facts.depth))
        reducer = Bipartite(self.metric)
        return tuple(Step(block, reducer, rule) for block, rule in enumerate(rules))
