"""ImagePiece + ToMe: ImagePiece's steps, with ToMe's merge where it prunes."""

import dataclasses

from imagepiece_jax.reduction.block_plan import MergeTo, Step
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece
from imagepiece_jax.reduction.reducers import Bipartite


@dataclasses.dataclass(frozen=True)
class ImagePieceToMe(ImagePiece):
    """ImagePiece's steps, of which those that prune merge to the same count as in ToMe.

    Such a merge removes at most half of the tokens.
    """

    def prune_step(self, block):
        return Step(block, Bipartite(self.metric), MergeTo(self.keep_rate))
