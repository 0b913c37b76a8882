"""No reduction: the dense model."""

import dataclasses

from imagepiece_jax.reduction.methods.method import Method


@dataclasses.dataclass(frozen=True)
class NoReduction(Method):
    """No steps."""

    def steps(self, depth):
        return ()
