"""Random: keep tokens by chance, the baseline for all methods."""

import dataclasses

import jax

from imagepiece_jax.reduction.block_plan import KeepShare, Step
from imagepiece_jax.reduction.methods.method import InStages, ModelFacts
from imagepiece_jax.reduction.reducers import Reducer, keep_highest


@dataclasses.dataclass(frozen=True)
class Draw(Reducer):
    """Keep `n_out` tokens drawn uniformly without replacement, in spatial order.

    An image's draw is a function of its key: of seed, step (or image) and block.
    """

    needed_inputs = frozenset({"rng"})

    def __call__(self, inputs, counts, train=False):
        draw_scores = jax.vmap(lambda key: jax.random.uniform(key, (counts.n_in,)))
        return keep_highest(draw_scores(inputs.rng), counts.n_out)


@dataclasses.dataclass(frozen=True)
class Random(InStages):
    """At every block in `blocks`, keep ceil(keep_rate * n) tokens: EViT's counts."""

    def steps(self, facts: ModelFacts) -> tuple[Step, ...]:
        return self.stage_steps(facts, Draw(), KeepShare(self.keep_rate))
