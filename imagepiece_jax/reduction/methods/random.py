"""Random: keep tokens by chance, the floor that every other choice must beat."""

import dataclasses
from typing import ClassVar

import jax

from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.reducers import keep_highest
from imagepiece_jax.reduction.schedule import Step, check_blocks, check_rate


@dataclasses.dataclass(frozen=True)
class Draw:
    """Keep `n_out` tokens drawn uniformly without replacement, in spatial order.

    The draw of an image is a function of its key: of seed, step (or image) and block.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"rng"})

    def __call__(self, taps, counts, train=False):
        draws = jax.vmap(lambda key: jax.random.uniform(key, (counts.n_in,)))(taps.rng)
        return keep_highest(draws, counts.n_out)


def recipe(depth, keep_rate=0.7, blocks=(3, 6, 9)):
    """At each of `blocks` keep ceil(keep_rate * n) tokens: EViT's counts."""
    keep_rate = check_rate("keep_rate", keep_rate)
    blocks = check_blocks("blocks", blocks)
    return tuple(Step(block, Draw(), "keep", keep_rate) for block in blocks)


METHOD = Method(recipe=recipe)
