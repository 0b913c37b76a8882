"""From a reduction to a model's plan: token counts, fitted to a cost if it has one."""

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
from imagepiece_jax.reduction.block_plan import Unreachable
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.methods.recommended import recommended
from imagepiece_jax.reduction.reduction import Reduction

TOLERANCE = 0.02  # allowed miss of a cost, as a share of the dense MACs
BISECTIONS = 30  # of a schedule's ratio: 2^30 is far more than all token counts


def with_plan(model: ViT, reduction: Reduction, masked: bool = False) -> ViT:
    """Replace a model's plan by a reduction's plan.

    masked: plan for training, where methods with a mask keep all tokens
    Raises InputError for a reduction that does not fit the model.
    """
    config = model.config
    fitted_reduction = at_cost(reduction, model)
    try:
        method = fitted_reduction.method.for_model(model.facts_for_methods())
        patches = math.prod(config.grid)
        plan = method.plan(model.depth, patches, config.arch.prefix, masked)
        contract.check_plan(plan, config.arch, config.grid)
    except InputError as error:
        raise InputError(f"reduction {reduction}: {error}") from error
    # The config's default comes first: MAE's weights, for example, work without
    # proportional attention.
    default = config.prop_attn
    if default is None:
        default = method.default_prop_attn
    prop_attn = fitted_reduction.prop_attn
    if prop_attn is None:
        prop_attn = default
    # A default is not stored, so explicit and implicit defaults give one Reduction.
    if prop_attn == default:
        fitted_reduction = dataclasses.replace(fitted_reduction, prop_attn=None)
    return model.clone(plan=plan, prop_attn=prop_attn, reduction=fitted_reduction)


def at_cost(
    reduction: Reduction, model: ViT, tolerance: float = TOLERANCE
) -> Reduction:
    """Replace a reduction's cost `macs` by token counts, or by fields of its method.

    A bare share of the MACs gets the recommended method. A reduction without a cost is
    returned unchanged.
    Raises InputError for a reduction that does not fit the model.
    """
    method = reduction.method
    if method.macs is None:
        return reduction
    facts = model.facts_for_methods()
    if type(method) is Method:  # a placeholder such as Method(macs=0.5)
        method = recommended(method, facts)
    try:
        fitted = method.for_model(facts)
        ratio = _nearest_ratio(fitted, model.clone(parent=None), tolerance)
    except InputError as error:
        raise InputError(f"reduction {reduction}: {error}") from error
    reduced = fitted.at_ratio(ratio, model.depth, math.prod(model.config.grid))
    if hasattr(reduced, "score"):  # "auto" stays "auto", which fits any model
        reduced = dataclasses.replace(reduced, score=method.score)
    return dataclasses.replace(reduction, method=reduced)


def print_reduction(reduction: Reduction, model: ViT) -> None:
    """Log "attended in blocks 3, 6, 9; counts 99, 50, 26; 0.50 of the MACs"."""
    # `reduction` is the caller's request; `model.reduction` has the counts. A reduction
    # without a cost states its own counts, so nothing is logged.
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
def _nearest_ratio(method, model, tolerance):
    """Bisect for the ratio whose cost is nearest to the method's `macs`.

    Raises InputError if the nearest cost misses by more than the tolerance.
    """
    trials = []
    depth = model.depth
    patches = math.prod(model.config.grid)

    def share_at(ratio):
        reduced = method.at_ratio(ratio, depth, patches)
        plan = reduced.plan(depth, patches, model.config.arch.prefix)
        share = share_of_dense(model.clone(plan=plan))
        trials.append((abs(share - method.macs), share, ratio))
        return share

    share_at(0.0)
    with contextlib.suppress(Unreachable):
        share_at(1.0)
    low = 0.0
    high = 1.0
    error = None  # raised at `high`, the lowest ratio at or below the cost; or None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        try:
            if share_at(middle) >= method.macs:
                low = middle
                continue
            error = None
        except Unreachable as unreachable:  # the ratio counts as reducing enough
            error = unreachable
        high = middle
    miss, share, ratio = min(trials, key=lambda trial: trial[0])
    if miss <= tolerance:
        return ratio
    if error:
        raise error
    raise InputError(
        f"macs is {method.macs:g}, but the method's nearest cost is {share:.3f}"
    )
