"""No reduction: the dense model."""

import dataclasses
from typing import Self

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.block_plan import Step
from imagepiece_jax.reduction.methods.method import Method, ModelFacts


@dataclasses.dataclass(frozen=True)
class NoReduction(Method):
    """No steps: the dense model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.macs not in (None, 1.0):
            raise InputError(f"macs is {self.macs}, but method none keeps all tokens")

    def at_ratio(self, ratio: float, facts: ModelFacts) -> Self:
        return type(self)()  # no step can remove tokens

    def steps(self, facts: ModelFacts) -> tuple[Step, ...]:
        return ()
