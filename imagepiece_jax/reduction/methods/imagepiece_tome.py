"""ImagePiece + ToMe: ImagePiece's steps, with ToMe's merge instead of pruning."""

import dataclasses

from imagepiece_jax.reduction.block_plan import KeepAtLeastHalf, Step
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece
from imagepiece_jax.reduction.reducers import Bipartite


@dataclasses.dataclass(frozen=True)
class ImagePieceToMe(ImagePiece):
    """ImagePiece's steps; prune steps become ToMe merges to the same count.

    A ToMe merge removes at most half the tokens.
    """

    def prune_step(self, block: int, score: str) -> Step:
        return Step(block, Bipartite(self.metric), KeepAtLeastHalf(self.keep_rate))
