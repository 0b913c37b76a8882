"""ImagePiece + ToMe: retokenize, and merge by similarity where ImagePiece prunes."""

import dataclasses

from imagepiece_jax.reduction.layer_plan import Step
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece
from imagepiece_jax.reduction.reducers import Bipartite
from imagepiece_jax.reduction.token_counts import MergeTo


@dataclasses.dataclass(frozen=True)
class ImagePieceToMe(ImagePiece):
    """ImagePiece's steps; those that prune merge to the same count, as ToMe does.

    Matching removes at most half of the tokens. `metric` is what both compare.
    """

    def prune_step(self, block):
        return Step(block, Bipartite(self.metric), MergeTo(self.keep_rate))
