"""From a reduction's cost to token counts."""

import contextlib
import dataclasses
import functools

from imagepiece_jax.common import parallel
from imagepiece_jax.common.progress import log
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.cost import share_of_dense
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.block_plan import Unreachable
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.methods.recommended import replace_placeholder
from imagepiece_jax.reduction.reduction import Reduction

COST_TOLERANCE = 0.02  # allowed miss of a cost, as a share of the dense MACs
MAX_BISECTIONS = 30  # of a schedule's ratio: 2^30 is far more than all token counts


def fit_to_cost(
    reduction: Reduction, model: ViT, tolerance: float = COST_TOLERANCE
) -> Reduction:
    """Replace a reduction's cost `macs` by token counts, or by fields of its method.

    A bare share of the MACs gets the recommended method. A reduction without a cost is
    returned unchanged.
    Raises InputError for a reduction that does not fit the model.
    """
    method = reduction.method
    if method.macs is None:
        return reduction
    macs = method.macs
    facts = model.facts_for_methods()
    if type(method) is Method:  # a placeholder such as Method(macs=0.5)
        method = replace_placeholder(method, facts)
    model = model.clone(parent=None)  # hashable, which Flax's stubs do not say
    # pyrefly: ignore[bad-argument-type]
    ratio = _nearest_ratio(method, macs, model, tolerance)
    fitted_method = method.at_ratio(ratio, facts)
    return dataclasses.replace(reduction, method=fitted_method, typed=str(reduction))


def log_reduction(reduction: Reduction, model: ViT) -> None:
    """Log "attended in blocks 3, 6, 9; counts 99, 50, 26; 0.50 of the MACs"."""
    # `reduction` is the caller's request; `model.reduction` has the counts. A reduction
    # without a cost states its own counts, so nothing is logged.
    if reduction.method.macs is None or not parallel.is_main():
        return
    method_name = (model.reduction or reduction).name
    block_plans = enumerate(model.plan)
    counts = {i: plan.counts.n_out for i, plan in block_plans if plan.counts}
    line = f"{method_name}: all tokens stay at this cost"
    if counts:
        block_noun = "block" if len(counts) == 1 else "blocks"
        place = f"{block_noun} {', '.join(map(str, counts))}"
        if len(counts) == model.depth:
            place = "every block"
        counts_text = ", ".join(map(str, counts.values()))
        share = share_of_dense(model)
        line = f"{method_name} in {place}; counts {counts_text}; "
        line += f"{share:.2f} of the MACs"
    log.info(line)


@functools.lru_cache(maxsize=256)
def _nearest_ratio(method, target, model, tolerance):
    """Bisect for the ratio whose share of the dense MACs is nearest to `target`.

    Raises InputError if the nearest cost misses by more than the tolerance.
    """
    facts = model.facts_for_methods()
    shares = {}  # {ratio: share of the dense model's MACs}
    errors = {}  # {ratio: Unreachable}

    def compute_share(ratio):
        """Compute a ratio's share of the MACs, and keep it in `shares`."""
        reduced_method = method.at_ratio(ratio, facts)
        plan = reduced_method.plan(facts, model.config.arch.prefix)
        shares[ratio] = share_of_dense(model.clone(plan=plan))
        return shares[ratio]

    compute_share(0.0)
    with contextlib.suppress(Unreachable):
        compute_share(1.0)
    low = 0.0
    high = 1.0
    for _ in range(MAX_BISECTIONS):
        middle = (low + high) / 2
        try:
            costs_less = compute_share(middle) < target
        except Unreachable as error:  # too few tokens: the ratio is too high
            errors[middle] = error
            costs_less = True
        if costs_less:
            high = middle
        else:
            low = middle
    nearest_ratio = min(shares, key=lambda ratio: abs(shares[ratio] - target))
    if abs(shares[nearest_ratio] - target) <= tolerance:
        return nearest_ratio
    sentence = f"but the method's nearest cost is {shares[nearest_ratio]:.3f}"
    raise errors.get(high) or InputError(f"macs is {target:g}, {sentence}")
