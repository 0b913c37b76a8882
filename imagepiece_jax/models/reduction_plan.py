"""From a reduction to a model's plan: counts of tokens, for a cost where it has one."""

import contextlib
import dataclasses
import functools
import math

from imagepiece_jax.common import parallel
from imagepiece_jax.common.progress import log
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.cost import share_of_dense
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction import contract
from imagepiece_jax.reduction.layer_plan import Unreachable
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.methods.recommended import recommended
from imagepiece_jax.reduction.reduction import Reduction

TOLERANCE = 0.02  # the share of the dense model's MACs by which a cost may be off
BISECTIONS = 30  # of a schedule's strength: far more than there are counts


def with_plan(model: ViT, reduction: Reduction, masked: bool = False) -> ViT:
    """A ViT with the plan of a reduction.

    Its field `reduction` is that of `at_cost`, with prop_attn where it differs from the
    default of method and model.

    model: a ViT of the same sizes, with any plan
    masked: for training: methods that train with a mask keep all tokens there
    Raises InputError for a reduction that does not fit the model.
    """
    config = model.config
    found = at_cost(reduction, model)
    try:
        method = found.method.for_model(model.facts_for_methods())
        patches = math.prod(config.grid)
        plan = method.plan(model.depth, patches, config.arch.prefix, masked)
        contract.check_plan(plan, config.arch, config.grid)
    except InputError as error:
        raise InputError(f"reduction {reduction}: {error}") from error
    # Some public weights (MAE's) are used without proportional attention.
    default = config.prop_attn
    if default is None:
        default = method.default_prop_attn
    prop_attn = found.prop_attn
    if prop_attn is None:
        prop_attn = default
    if prop_attn == default:
        found = dataclasses.replace(found, prop_attn=None)
    return model.clone(plan=plan, prop_attn=prop_attn, reduction=found)


def at_cost(
    reduction: Reduction, model: ViT, tolerance: float = TOLERANCE
) -> Reduction:
    """A reduction with counts of tokens, or fields, in place of its cost `macs`.

    A share of the MACs gets the recommended method. One without a cost is returned as
    it is.

    model: a ViT of the model's sizes, with any plan
    tolerance: the share of the dense model's MACs by which the cost may be off
    Raises InputError for a reduction that does not fit the model.
    """
    method = reduction.method
    if method.macs is None:
        return reduction
    facts = model.facts_for_methods()
    if type(method) is Method:
        method = recommended(method, facts)
    try:
        fitted = method.for_model(facts)
        strength = _strength(fitted, model.clone(parent=None), tolerance)
    except InputError as error:
        raise InputError(f"reduction {reduction}: {error}") from error
    patches = math.prod(model.config.grid)
    found = fitted.at_strength(strength, model.depth, patches)
    if hasattr(found, "score"):  # it stays "auto", which fits other models, too
        found = dataclasses.replace(found, score=method.score)
    return dataclasses.replace(reduction, method=found)


def print_reduction(reduction: Reduction, model: ViT) -> None:
    """Log "attended in blocks 3, 6, 9; counts 99, 50, 26; 0.50 of the MACs".

    Nothing is logged of a reduction without a cost, which says itself what it is.

    reduction: as it was asked for
    model: a ViT with its plan
    """
    if reduction.method.macs is None or not parallel.is_main():
        return
    method = model.reduction.name
    left = {}
    for block, layer in enumerate(model.plan):
        if layer.counts:
            left[block] = layer.counts.n_out
    line = f"{method}: all tokens stay at this cost"
    if left:
        blocks = "block" if len(left) == 1 else "blocks"
        where = f"{blocks} {', '.join(map(str, left))}"
        if len(left) == model.depth:
            where = "every block"
        counts = ", ".join(map(str, left.values()))
        share = share_of_dense(model)
        line = f"{method} in {where}; counts {counts}; {share:.2f} of the MACs"
    log.info(line)


@functools.lru_cache(maxsize=256)
def _strength(method, model, tolerance):
    """The strength of `method` whose share of the dense MACs is nearest to its `macs`.

    tolerance: the largest difference between the two
    Raises InputError where no strength is so near.
    """
    tried = []
    depth = model.depth
    patches = math.prod(model.config.grid)

    def try_strength(strength):
        found = method.at_strength(strength, depth, patches)
        plan = found.plan(depth, patches, model.config.arch.prefix)
        macs = share_of_dense(model.clone(plan=plan))
        tried.append((abs(macs - method.macs), macs, strength))
        return macs

    try_strength(0.0)
    # The error to raise is that of the weakest strength that fails, not that of 1.
    with contextlib.suppress(Unreachable):
        try_strength(1.0)
    _, error = _weakest_strength(lambda strength: try_strength(strength) < method.macs)
    miss, macs, strength = min(tried, key=lambda trial: trial[0])
    if miss <= tolerance:
        return strength
    if error:
        raise error
    raise InputError(
        f"macs is {method.macs:g}, but the nearest cost of the method is {macs:.3f}"
    )


def _weakest_strength(is_enough):
    """The weakest strength of a schedule that is enough, by bisection.

    is_enough: from a strength to a bool; where it raises Unreachable, because the
        schedule cannot go so far, the strength counts as enough
    Returns (strength, the Unreachable that this strength raised, or None).
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
        except Unreachable as error:
            high = middle
            error_at_high = error
    return high, error_at_high
