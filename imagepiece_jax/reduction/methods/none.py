"""No reduction: the dense model."""

import dataclasses

from imagepiece_jax.reduction.methods.method import Method


@dataclasses.dataclass(frozen=True)
class NoReduction(Method):
    """No steps: the dense model."""

    amounts = ()

    def __post_init__(self):
        super().__post_init__()
        for field, usual in (("macs", 1.0), ("counts", None)):
            if getattr(self, field) not in (None, usual):
                problem = f"is {getattr(self, field)!r}, but no method is named"
                self.refuse(field, problem=problem, hint="name one, such as tome")

    def within_reach(self, counts, depth, patches):
        return self  # all tokens are the fewest that it can leave

    def steps(self, depth):
        return ()
