"""Rates at which a method has a given cost: one knob a method, in small steps."""

import bisect
import itertools
from collections.abc import Callable, Iterable

from imagepiece_jax.errors import InputError

HUNDREDTHS = [i / 100 for i in range(5, 101)]
SPVIT = (0.617, 0.369, 0.137)  # its shares of the first tokens, scaled together
Reduction = dict
Cost = Callable[[Reduction], float]


def settings(reduction: Reduction, depth: int = 12) -> list[Reduction]:
    """`reduction` at every position of its method's knob."""
    name = reduction["name"]
    changes = _KNOBS[name](reduction, depth) if name in _KNOBS else [{}]
    return [reduction | change for change in changes]


def nearest(
    cost: Cost, reduction: Reduction, target: float, depth: int = 12
) -> Reduction:
    """Of `settings` the one whose `cost(reduction)` is nearest to `target`."""
    found = priced(cost, settings(reduction, depth))
    if not found:
        raise InputError(f"no rate of {reduction['name']!r} fits this model")
    return min(found, key=lambda pair: abs(pair[0] - target))[1]


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
    try:
        rising = cost(reductions[0]) <= cost(reductions[-1])
    except InputError:
        return None
    ordered = reductions if rising else reductions[::-1]
    fitting = bisect.bisect_right(ordered, limit, key=cost)
    return (cost(ordered[fitting - 1]), ordered[fitting - 1]) if fitting else None


def _keep_rate(reduction, depth):
    return [{"keep_rate": rate} for rate in HUNDREDTHS]


def _imagepiece(reduction, depth):
    """Its keep rate; its merge ratio where it does not prune."""
    if reduction.get("prune_blocks") == ():
        return [{"merge_ratio": i / 200} for i in range(2, 101)]
    return _keep_rate(reduction, depth)


def _tome(reduction, depth):
    return [{"r": r} for r in range(0, 100)]


def _spvit(reduction, depth):
    """All three shares, scaled, none above one."""
    return [
        {"keep_rates": tuple(round(min(1.0, scale * share), 4) for share in SPVIT)}
        for scale in HUNDREDTHS + [1 + i / 50 for i in range(1, 100)]
    ]


def _token_learner(reduction, depth):
    pairs = itertools.product(range(1, depth), (8, 16, 32))
    return [{"block": block, "num_tokens": tokens} for block, tokens in pairs]


def _grid_pooling(reduction, depth):
    return [{"block": block} for block in range(1, depth)]


_KNOBS = {
    "evit": _keep_rate,
    "random": _keep_rate,
    "dynamicvit": _keep_rate,
    "token_pooling": _keep_rate,
    "imagepiece": _imagepiece,
    "imagepiece_tome": _imagepiece,
    "imagepiece_dynamicvit": _keep_rate,
    "tome": _tome,
    "spvit": _spvit,
    "token_learner": _token_learner,
    "grid_pooling": _grid_pooling,
}
