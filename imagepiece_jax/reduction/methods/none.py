"""No reduction: the dense model."""

import dataclasses

from imagepiece_jax.reduction.methods.method import Method


@dataclasses.dataclass(frozen=True)
class NoReduction(Method):
    """No steps: the dense model."""

    amounts = ()

    def __post_init__(self):
        super().__post_init__()
        if self.macs not in (None, 1.0):
            self._refuse("macs")

    def within_reach(self, counts, depth, patches):
        return self  # all tokens are the fewest that it can leave

    def steps(self, depth):
        return ()

    def step_at(self, block, depth, tokens):
        """Refused, as `counts` then says that fewer tokens stay."""
        self._refuse("counts")

    def _refuse(self, field):
        problem = f"is {getattr(self, field)!r}, but no method is named"
        self.refuse(field, problem=problem, hint="name one, such as tome")
