"""Settings at which a method has a given cost, along the knob that it declares."""

import bisect
import math
from collections.abc import Callable, Iterable

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.settings import split

Reduction = dict
Cost = Callable[[Reduction], float]


def settings(reduction: Reduction, depth: int = 12) -> list[Reduction]:
    """`reduction` at every position of its method's knob."""
    own, _ = split(reduction)
    return [reduction | setting for setting in methods.create(**own).knob(depth)]


def nearest(
    cost: Cost, reduction: Reduction, target: float, depth: int = 12
) -> Reduction:
    """Of `settings` the one whose `cost(reduction)` is nearest to `target`."""
    found = priced(cost, settings(reduction, depth))
    if not found:
        raise InputError(f"no rate of {reduction['name']!r} fits this model")
    return closest(found, target)[1]


def closest(
    found: Iterable[tuple[float, Reduction]], target: float
) -> tuple[float, Reduction]:
    """Of (cost, reduction) as from `priced` the one whose cost is nearest."""
    return min(found, key=lambda pair: abs(pair[0] - target))


def priced(
    cost: Cost, reductions: Iterable[Reduction]
) -> list[tuple[float, Reduction]]:
    """[(cost, reduction)] of those that make a model, most expensive first."""
    found = []
    for reduction in reductions:
        try:
            found.append((cost(reduction), reduction))
        except InputError:  # a position of the knob that this model has not
            continue
    return sorted(found, key=lambda pair: -pair[0])


def most_expensive(
    cost: Cost, reductions: list[Reduction], limit: float
) -> tuple[float, Reduction] | None:
    """(cost, reduction) of the highest cost up to `limit`, by bisection.

    The cost must rise, or fall, along `reductions`. None where all cost more, or the
    model lacks the blocks that they name.
    """

    def price(reduction):
        try:
            return cost(reduction)
        except InputError:  # more merges than the model has tokens for: none is cheaper
            return -math.inf

    rising = price(reductions[0]) <= price(reductions[-1])
    ordered = reductions if rising else reductions[::-1]
    fitting = bisect.bisect_right(ordered, limit, key=price)
    if not fitting or price(ordered[fitting - 1]) == -math.inf:
        return None
    return price(ordered[fitting - 1]), ordered[fitting - 1]
