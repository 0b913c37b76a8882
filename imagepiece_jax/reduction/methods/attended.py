"""The most attended tokens stay, and each other joins the most similar of them.

DiffRate's selector without its pruning and its searched list: Chen et al., ICCV 2023.
"""

import dataclasses

from imagepiece_jax.reduction.methods.diffrate import ALL, PruneAndMerge
from imagepiece_jax.reduction.methods.method import InStages


@dataclasses.dataclass(frozen=True)
class Attended(InStages):
    """At each of `blocks` a share of the tokens stays, and the others merge into it."""

    default_prop_attn = True

    score: str = "auto"

    def steps(self, depth):
        return self.stages(PruneAndMerge(ALL, score=self.score))
