"""How long programs are timed; commands read it for their options, without JAX."""

import dataclasses

from imagepiece_jax.common.checks import check_range


@dataclasses.dataclass(frozen=True)
class Rules:
    """How long to measure; the defaults are what a published figure needs."""

    warmup: int = 20  # calls of every program before any is timed
    repeats: int = 5  # turns of every program
    seconds: float = 1.0  # least time of a turn

    def __post_init__(self):
        check_range("warmup", self.warmup, 1, whole=True)
        check_range("repeats", self.repeats, 1, whole=True)
        check_range("seconds", self.seconds, 0)
