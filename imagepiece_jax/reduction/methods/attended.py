"""Attended: the most attended tokens stay, and absorb the tokens similar to them.

This is DiffRate's selector without pruning and searched lists (Chen et al., ICCV 2023).
"""

import dataclasses

from imagepiece_jax.reduction.block_plan import Step
from imagepiece_jax.reduction.methods.diffrate import ALL_TOKENS, PruneAndMerge
from imagepiece_jax.reduction.methods.method import InStages, ModelFacts


@dataclasses.dataclass(frozen=True)
class Attended(InStages):
    """At every block in `blocks`, keep a share of the tokens and merge the rest."""

    default_prop_attn = True

    score: str = "auto"

    def steps(self, facts: ModelFacts) -> tuple[Step, ...]:
        reducer = PruneAndMerge(ALL_TOKENS, score=self.score_for(facts))
        return self.stage_steps(facts, reducer)
