"""Random: keep tokens by chance, the baseline for all methods."""

import dataclasses

import jax

from imagepiece_jax.reduction.block_plan import KeepShare, Step, StepCounts
from imagepiece_jax.reduction.methods.method import InStages, ModelFacts
from imagepiece_jax.reduction.reducers import Reducer, keep_highest
from imagepiece_jax.reduction.state import Assignment, ReducerInputs


@dataclasses.dataclass(frozen=True)
class Draw(Reducer):
    """Keep `n_out` tokens drawn uniformly without replacement, in spatial order.

    An image's draw is a function of its key: of seed, step (or image) and block.
    """

    needed_inputs = frozenset({"rng"})

    def __call__(
        self, inputs: ReducerInputs, counts: StepCounts, train: bool = False
    ) -> Assignment:
        def draw_scores(key):
            return jax.random.uniform(key, (counts.n_in,))

        return keep_highest(jax.vmap(draw_scores)(inputs.rng), counts.n_out)


@dataclasses.dataclass(frozen=True)
class Random(InStages):
    """At every block in `blocks`, keep ceil(keep_rate * n) tokens: EViT's counts."""

    def steps(self, model: ModelFacts) -> tuple[Step, ...]:
        return self.stage_steps(model, Draw(), KeepShare(self.keep_rate))
