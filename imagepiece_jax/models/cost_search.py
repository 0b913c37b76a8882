"""Counts of tokens for a cost, or for a number of tokens that is left in the end."""

import contextlib
import dataclasses
import functools
import math
import sys

from imagepiece_jax.common import parallel
from imagepiece_jax.common.fields import is_integer
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.methods.recommended import recommendation
from imagepiece_jax.reduction.reduction import DENSE, Reduction, ReductionLike

TOLERANCE = 0.02  # the share of the dense model's MACs by which a cost may be off
BISECTIONS = 30  # of a schedule's strength: far more than there are counts


def at_cost(
    reduction: Reduction,
    model: ViT,
    grid: tuple[int, int],
    name: str | None = None,
    tolerance: float = TOLERANCE,
) -> Reduction:
    """A reduction with counts of tokens, or fields, in place of its cost `macs`.

    In place of "auto" it has the recommended method. What asked for it is noted. One
    without a cost is returned as it is.

    model: a ViT of the model's sizes, with any plan
    grid: (height, width) of the images, in patches
    name: of a public model, on which defaults depend
    tolerance: the share of the dense model's MACs by which the cost may be off
    Raises InputError for a reduction that does not fit the model.
    """
    if reduction.method.macs is None:
        return reduction
    facts = model.facts_for_methods(grid, name)
    chosen = reduction.chosen(facts)
    fitted = chosen.for_model(facts).method
    unbound = model.clone(parent=None)
    try:
        strength = _strength(fitted, unbound, grid, tolerance)
    except InputError as error:
        error = error.inside("reduction")
        if reduction.is_open:  # its cost is all that was asked for
            error = error.renamed({"reduction.macs": "reduction"})
        raise error from error
    found = fitted.at_strength(strength, model.depth, math.prod(grid))
    if hasattr(found, "score"):  # it stays "auto", which fits other models, too
        found = dataclasses.replace(found, score=chosen.method.score)
    words = Reduction(chosen.method).words
    return Reduction(found, reduction.prop_attn, words.replace(", ", ","))


def say(asked: ReductionLike, model: ViT, grid: tuple[int, int], name: str | None):
    """Print counts and cost of a reduction in short, a number or a text, on stderr.

    Of others it prints those that leave the method open.

    asked: as a caller gave it
    model: a ViT with its plan
    grid, name: as for `at_cost`
    """
    reduction = Reduction.read(asked)
    is_short = isinstance(asked, str) or reduction.is_open
    if reduction.name == DENSE.name or not is_short:
        return
    text = reduction.name
    if reduction.is_open:
        text = recommendation(model.facts_for_methods(grid, name)).text
    _print_plan(text, model, grid)


def _print_plan(text, model, grid):
    """Print "most attended in blocks 3, 6, 9; counts 99, 50, 26; 0.50 of the MACs".

    text: the method, in words
    """
    if not parallel.is_main():
        return
    left = {}
    for block, layer in enumerate(model.plan):
        if layer.counts:
            left[block] = layer.counts.n_out
    line = f"{text}: all tokens stay at this cost"
    if left:
        blocks = "block" if len(left) == 1 else "blocks"
        where = f"{blocks} {', '.join(map(str, left))}"
        if len(left) == model.depth:
            where = "every block"
        counts = ", ".join(map(str, left.values()))
        share = share_of(model.plan, model, grid)
        line = f"{text} in {where}; counts {counts}; {share:.2f} of the MACs"
    print(line, file=sys.stderr, flush=True)


def share_of(plan, model, grid):
    """The MACs with a plan, as a share of the dense model's."""
    size = tuple(side * model.patch_size for side in grid)
    dense = model.clone(plan=model.plan_of(methods.create(), grid))
    return model_macs(model.clone(plan=plan), size) / model_macs(dense, size)


def _counts(method, model, grid):
    """Image tokens after each block."""
    plan = model.plan_of(method, grid)
    return [layer.mlp_tokens - model.arch.prefix for layer in plan]


@functools.lru_cache(maxsize=256)
def _strength(method, model, grid, tolerance):
    """The strength of `method` whose share of the dense MACs is nearest to its `macs`.

    tolerance: the largest difference between the two
    Raises InputError where no strength is so near.
    """
    tried = []

    def try_strength(strength):
        found = method.at_strength(strength, model.depth, math.prod(grid))
        macs = share_of(model.plan_of(found, grid), model, grid)
        tried.append((abs(macs - method.macs), macs, strength))
        return macs

    try_strength(0.0)
    # The error to raise is that of the weakest strength that fails, not that of 1.
    with contextlib.suppress(InputError):
        try_strength(1.0)
    _, error = _weakest_strength(lambda strength: try_strength(strength) < method.macs)
    miss, macs, strength = min(tried, key=lambda trial: trial[0])
    if miss <= tolerance:
        return strength
    if error:
        raise error
    name = methods.name_of(method)
    problem = f"is {method.macs:g}, but the nearest cost of {name!r} is {macs:.3f}"
    limit = f"costs within {tolerance:g} of one that it reaches"
    if macs == min(share for _, share, _ in tried):
        limit = f"{macs:.3f}, the lowest, to 1"
    method.refuse("macs", limit, problem)


def ending_at(tokens, method, model, grid):
    """A Method with counts that end at exactly `tokens` image tokens.

    They are those of the method's weakest schedule that leaves at most `tokens`; where
    it leaves fewer, counts below `tokens` are raised to it.
    """
    patches = math.prod(grid)
    if not is_integer(tokens) or not 1 <= tokens <= patches:
        allowed = f"whole numbers from 1 to {patches}, the patches of an image"
        raise InputError("tokens", tokens, allowed)
    tokens = int(tokens)  # a NumPy integer would be taken for an array

    def counts_at(strength):
        found = method.at_strength(strength, model.depth, patches)
        return _counts(found, model, grid)

    if counts_at(0.0)[-1] < patches:  # a field fixes the last count at any strength
        own = _counts(dataclasses.replace(method, macs=None), model, grid)
        counts = [count if count > own[-1] else tokens for count in own]
    else:
        strength, _ = _weakest_strength(lambda trial: counts_at(trial)[-1] <= tokens)
        counts = [max(tokens, count) for count in counts_at(strength)]
    fewest = counts[-1]
    if fewest != tokens:
        allowed = f"{fewest}, the fewest that this reduction leaves, to {patches}"
        raise InputError("tokens", tokens, allowed)
    free = dataclasses.replace(method, macs=None, counts=None)
    return free.within_reach(counts, model.depth, patches)


def _weakest_strength(is_enough):
    """The weakest strength of a schedule that is enough, by bisection.

    is_enough: from a strength to a bool; where it raises InputError, because the
        schedule cannot go so far, the strength counts as enough
    Returns (strength, the InputError that this strength raised, or None).
    """
    low = 0.0
    high = 1.0
    error_at_high = None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        try:
            if not is_enough(middle):
                low = middle
                continue
            high = middle
            error_at_high = None
        except InputError as error:
            high = middle
            error_at_high = error
    return high, error_at_high
