"""No reduction: the dense model."""

import dataclasses

from imagepiece_jax.reduction.methods.method import Method


@dataclasses.dataclass(frozen=True)
class NoReduction(Method):
    """No steps: the dense model."""

    amounts = ()

    def steps(self, depth):
        return ()
