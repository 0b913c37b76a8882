"""ToMe: merge similar tokens, a few in every block (Bolya et al., ICLR 2023)."""

import dataclasses
from typing import Any, ClassVar

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.layer_plan import Step
from imagepiece_jax.reduction.methods.method import Method, along, check_merges
from imagepiece_jax.reduction.reducers import METRICS, Bipartite
from imagepiece_jax.reduction.token_counts import Remove
from imagepiece_jax.reduction.validate import (
    check_counts,
    checked,
    choice,
    count,
    is_number,
    optional,
)


def _check_inflection(name, value):
    if not is_number(value) or not -1 <= value <= 1:
        raise InputError(
            f"config.reduction.{name} is {value!r}; allowed are numbers from -1 to 1"
        )
    return float(value)


@dataclasses.dataclass(frozen=True)
class ToMe(Method):
    """In every block merge `r` tokens, or as many as half of the image tokens.

    inflection: spreads them linearly over the blocks, with mean `r`: falling from 2 r
    to 0 at -1, rising from 0 to 2 r at 1; r_list: names them block by block instead,
    and the blocks after its end merge nothing; metric: what is compared ("key",
    "query", "value", "token").
    """

    small: ClassVar[dict[str, Any]] = {"r_list": (2, 2, 4)}

    model_fields: ClassVar[dict[str, bool]] = {"prop_attn": True}

    r: int = count(13)
    inflection: float = checked(0.0, _check_inflection)
    r_list: tuple[int, ...] | None = optional(check_counts)
    metric: str = choice("key", METRICS)

    def knob(self, depth):
        return along("r", range(100))

    def resolved(self, model):
        check_merges(self, model.patches)
        return super().resolved(model)

    def removed(self, depth):
        """Tokens that each block is to merge away, a tuple of `depth` ints."""
        if self.r_list is not None:
            if len(self.r_list) > depth:
                raise InputError(
                    f"config.reduction.r_list has {len(self.r_list)} entries; allowed "
                    f"are at most {depth}, one for each block"
                )
            return self.r_list + (0,) * (depth - len(self.r_list))
        low = int(self.r * (1 - self.inflection))
        high = 2 * self.r - low
        return tuple(low + i * (high - low) // max(depth - 1, 1) for i in range(depth))

    def steps(self, depth):
        reducer = Bipartite(self.metric)
        removed = map(Remove, self.removed(depth))
        return tuple(Step(block, reducer, rule) for block, rule in enumerate(removed))
