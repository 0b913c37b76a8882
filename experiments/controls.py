"""Controls of ImagePiece, as methods: each does one thing otherwise.

docs/imagepiece.md has the first three: dropping, random pairs, ToMe's matching.
"""

import contextlib
import dataclasses

import jax

from imagepiece_jax.reduction.block_plan import MergeCandidates, Step, exact_ceil
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece, Retokenize
from imagepiece_jax.reduction.methods.imagepiece_tome import ImagePieceToMe
from imagepiece_jax.reduction.reducers import Bipartite, TopK


@dataclasses.dataclass(frozen=True)
class ImagePieceDropping(ImagePiece):
    """ImagePiece that drops as many of the least attended tokens as it would merge."""

    def merge_step(self, block, score):
        step = super().merge_step(block, score)
        return dataclasses.replace(step, reducer=TopK(score=score))


class RandomPairs(Retokenize):
    """Retokenize with uniform random similarities: chance makes the pairs."""

    @property
    def needed_inputs(self):
        return super().needed_inputs - {"metric"} | {"rng"}

    def compare_sides(self, inputs, candidates, num_a):
        shape = (num_a, candidates.shape[1] - num_a)
        return jax.vmap(lambda key: jax.random.uniform(key, shape))(inputs.rng)


@dataclasses.dataclass(frozen=True)
class ImagePieceRandom(ImagePiece):
    """ImagePiece that merges random pairs of the least attended tokens."""

    def merge_step(self, block, score):
        step = super().merge_step(block, score)
        pairs = RandomPairs(**vars(step.reducer))
        return dataclasses.replace(step, reducer=pairs)


@dataclasses.dataclass(frozen=True)
class ImagePieceMatched(ImagePieceToMe):
    """ToMe's matching of all tokens, at every step of ImagePiece."""

    def merge_step(self, block, score):
        rule = MergeCandidates(self.merge_ratio, self.candidate_ratio)
        return Step(block, Bipartite(self.metric), rule)


@dataclasses.dataclass(frozen=True)
class ImagePieceLater(ImagePiece):
    """ImagePiece one block later: schedule A counts the paper's layers from 0."""

    def scheduled_blocks(self, depth):
        merge, prune = super().scheduled_blocks(depth)
        return tuple(block + 1 for block in merge), tuple(block + 1 for block in prune)


class MergeOfCandidates(MergeCandidates):
    """MergeCandidates whose `merge_ratio` is a share of the candidates."""

    def count_removed(self, n):
        return exact_ceil(self.merge_ratio * self.count_candidates(n))


@dataclasses.dataclass(frozen=True)
class ImagePieceOfCandidates(ImagePiece):
    """ImagePiece whose `merge_ratio` is a share of the candidates."""

    def merge_step(self, block, score):
        step = super().merge_step(block, score)
        rule = MergeOfCandidates(**vars(step.rule))
        return dataclasses.replace(step, rule=rule)


CONTROLS = {
    "imagepiece_dropping": ImagePieceDropping,
    "imagepiece_random": ImagePieceRandom,
    "imagepiece_matched": ImagePieceMatched,
    "imagepiece_later": ImagePieceLater,
    "imagepiece_of_candidates": ImagePieceOfCandidates,
}


@contextlib.contextmanager
def register_methods(methods=CONTROLS):
    """Have `methods` among METHODS while the context is entered."""
    new = {name: kind for name, kind in methods.items() if name not in METHODS}
    METHODS.update(new)
    try:
        yield
    finally:
        for name in new:
            del METHODS[name]
