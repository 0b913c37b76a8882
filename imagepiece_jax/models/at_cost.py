"""Counts of tokens for a cost, or for a number of tokens that is left in the end."""

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Mapping

from imagepiece_jax.common import parallel
from imagepiece_jax.common.fields import is_integer, is_number, plain
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.methods.recommended import recommendation
from imagepiece_jax.reduction.settings import (
    DENSE,
    LABEL,
    as_fields,
    cost_label,
    fields_of_method,
    read_reduction,
    split_reduction,
    with_defaults,
)

TOLERANCE = 0.02  # the share of the dense model's MACs by which a cost may be off
BISECTIONS = 30  # of a schedule's strength: far more than there are counts


def fields_to_note(reduction, method, model, grid, name):
    """What a ViT notes of a reduction with a cost or a label, without prop_attn.

    It has counts in place of the cost. The label stays only where it still gives this
    model the same fields: they, or the image size, may have changed since.

    method: what the reduction asks for, with counts in place of a cost
    """
    fields, _ = split_reduction(reduction)
    if fields.get("macs") is not None:
        return _with_counts(fields, method, model, grid, name)
    text = reduction[LABEL]
    own = with_defaults(fields)
    try:
        wanted = with_defaults(fields_at_cost(text, model, grid, name))
    except InputError:
        return fields
    return {**fields, LABEL: text} if wanted == own else fields


def fields_at_cost(reduction, model, grid, name=None, tolerance=TOLERANCE):
    """A reduction as a dict, with counts of tokens in place of its cost, `macs`.

    It keeps the text that asked for it as its label. In place of "auto" it is the
    recommended method.

    model: a ViT of the model's sizes, with any plan
    reduction, grid, name: as for `config.with_plan`
    tolerance: the share of the dense model's MACs by which the cost may be off
    Raises InputError for a reduction that does not fit the model.
    """
    try:
        method, _ = read_reduction(reduction)
        _, found = chosen_with_counts(method, model, grid, name, tolerance)
    except InputError as error:
        if is_number(plain(reduction)):
            raise error.renamed({"reduction.macs": "reduction"}) from error
        raise
    return _with_counts(as_fields(reduction), found, model, grid, name)


def _with_counts(reduction, found, model, grid, name):
    """A reduction as a dict, with the fields of `found` in place of its cost.

    Other arguments and the result are those of `fields_at_cost`.

    found: the reduction's Method at that cost, which mostly has counts of tokens
    """
    reduction = with_chosen(reduction, model, grid, name)
    method, _ = read_reduction(reduction)
    if method.macs is None:
        return reduction
    fields = dict(reduction)
    for field, value in vars(found).items():
        if value != getattr(method, field):
            fields[field] = value
    fields[LABEL] = cost_label(reduction)
    without_effect = ()
    if found.counts:
        without_effect = found.amounts
    set_fields = {}
    for field, value in fields.items():
        if value is not None and field not in without_effect:
            set_fields[field] = value
    return set_fields


def with_chosen(reduction, model, grid, name=None):
    """The reduction as a dict; in place of "auto" it has the recommended method.

    Arguments are those of `fields_at_cost`.
    """
    method, prop_attn = read_reduction(reduction)
    chosen = method.chosen(model.facts_for_methods(grid, name))
    if chosen is method:
        return reduction
    fields = fields_of_method(chosen)
    if prop_attn is not None:
        fields["prop_attn"] = prop_attn
    return fields


def method_at_cost(method, model, grid, name=None):
    """A Method with counts of tokens in place of its cost.

    In place of "auto" it is the recommended method, and a line on stderr says so.
    Arguments are those of `fields_at_cost`.
    """
    chosen, found = chosen_with_counts(method, model, grid, name)
    if chosen is not method:
        planned = model.clone(plan=model.plan_of(found, grid))
        text = recommendation(model.facts_for_methods(grid, name)).text
        _print_plan(text, planned, grid)
    return found


def say(reduction, model, grid, name=None):
    """Print counts and cost of a reduction in short, a number or a text, on stderr.

    Of dicts it prints those that leave the method open.

    reduction: as a caller gave it
    model: a ViT with its plan
    grid, name: as for `config.with_plan`
    """
    asked = as_fields(reduction)["name"]
    is_open = asked == methods.AUTO
    if asked == DENSE["name"] or (isinstance(reduction, Mapping) and not is_open):
        return
    text = asked
    if is_open:
        text = recommendation(model.facts_for_methods(grid, name)).text
    _print_plan(text, model, grid)


def chosen_with_counts(method, model, grid, name, tolerance=TOLERANCE):
    """(the method, or the one recommended for "auto"; the same with counts)."""
    if method.macs is None:
        return method, method
    of_model = model.facts_for_methods(grid, name)
    chosen = method.chosen(of_model)
    unbound = model.clone(parent=None)
    try:
        found = _at_cost(chosen.for_model(of_model), unbound, grid, tolerance)
    except InputError as error:
        raise error.inside("reduction") from error
    if hasattr(chosen, "score"):  # it stays "auto", which fits other models, too
        found = dataclasses.replace(found, score=chosen.score)
    return chosen, found


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
def _at_cost(method, model, grid, tolerance=TOLERANCE):
    """`method` at the strength whose share of the dense MACs is nearest to its `macs`.

    tolerance: the largest difference between the two
    Raises InputError where no strength is so near.
    """
    tried = []

    def try_strength(strength):
        found = method.at_strength(strength, model.depth, math.prod(grid))
        macs = share_of(model.plan_of(found, grid), model, grid)
        tried.append((abs(macs - method.macs), macs, found))
        return macs

    try_strength(0.0)
    # The error to raise is that of the weakest strength that fails, not that of 1.
    with contextlib.suppress(InputError):
        try_strength(1.0)
    _, error = _weakest_strength(lambda strength: try_strength(strength) < method.macs)
    miss, macs, found = min(tried, key=lambda trial: trial[0])
    if miss <= tolerance:
        return found
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
        raise InputError(
            field="tokens",
            value=tokens,
            allowed=f"whole numbers from 1 to {patches}, the patches of an image",
        )
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
        raise InputError(
            field="tokens",
            value=tokens,
            allowed=f"{fewest}, the fewest that this reduction leaves, to {patches}",
        )
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
