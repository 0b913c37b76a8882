"""Settings at which a method has a given cost, along the knob that it declares."""

from collections.abc import Callable, Iterable

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.settings import split

Reduction = dict
Cost = Callable[[Reduction], float]


def settings(reduction: Reduction, depth: int = 12) -> list[Reduction]:
    """`reduction` at every position of its method's knob."""
    fields, _ = split(reduction)
    return [reduction | setting for setting in methods.create(**fields).knob(depth)]


def nearest(
    cost: Cost, reduction: Reduction, target: float, depth: int = 12
) -> Reduction:
    """Of `settings` the one whose `cost(reduction)` is nearest to `target`."""
    choices = priced(cost, settings(reduction, depth))
    if not choices:
        raise InputError(f"no rate of {reduction['name']!r} fits this model")
    return closest(choices, target)[1]


def closest(
    choices: Iterable[tuple[float, Reduction]], target: float
) -> tuple[float, Reduction]:
    """Of (cost, reduction) as from `priced` the one whose cost is nearest."""
    return min(choices, key=lambda pair: abs(pair[0] - target))


def priced(
    cost: Cost, reductions: Iterable[Reduction]
) -> list[tuple[float, Reduction]]:
    """[(cost, reduction)] of those that make a model, most expensive first."""
    choices = []
    for reduction in reductions:
        try:
            choices.append((cost(reduction), reduction))
        except InputError:  # a position of the knob that this model has not
            continue
    return sorted(choices, key=lambda pair: -pair[0])
