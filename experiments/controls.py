"""ImagePiece's controls beside dropping: its token counts, with other pairs of tokens.

The comparison of docs/imagepiece.md is over. Its tables call them "imagepiece random"
and "imagepiece tome", values that the field `inattentive` then had.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax

from imagepiece_jax.common.rng import uniform
from imagepiece_jax.reduction.layer_plan import Step
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece, Retokenize
from imagepiece_jax.reduction.methods.imagepiece_tome import ImagePieceToMe
from imagepiece_jax.reduction.reducers import Bipartite
from imagepiece_jax.reduction.token_counts import Merge


class RandomPairs(Retokenize):
    """Similarities are drawn, uniformly, so that chance makes the pairs."""

    @property
    def needs(self):
        return super().needs - {"metric"} | {"rng"}

    def similarity(self, taps, candidates, size_a):
        shape = (size_a, candidates.shape[1] - size_a)
        return jax.vmap(lambda key: uniform(key, shape))(taps.rng)


@dataclasses.dataclass(frozen=True)
class ImagePieceRandom(ImagePiece):
    """ImagePiece that merges random pairs of the least attended tokens."""

    def merge_step(self, block):
        step = super().merge_step(block)
        pairs = RandomPairs(**vars(step.reducer))
        return dataclasses.replace(step, reducer=pairs)


@dataclasses.dataclass(frozen=True)
class ImagePieceMatched(ImagePieceToMe):
    """ToMe's matching of all tokens, at every step of ImagePiece."""

    def merge_step(self, block):
        rule = Merge(self.merge_ratio, self.candidate_ratio, self.merge_base)
        return Step(block, Bipartite(self.metric), rule)


CONTROLS = {
    "imagepiece_random": ImagePieceRandom,
    "imagepiece_matched": ImagePieceMatched,
}


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """While entered, the controls are among METHODS."""
    METHODS.update(CONTROLS)
    try:
        yield
    finally:
        for name in CONTROLS:
            del METHODS[name]
