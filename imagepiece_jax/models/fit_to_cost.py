"""From a share of the MACs to token counts: the ratio of a method's schedule."""

import contextlib
import dataclasses
import functools

from imagepiece_jax.errors import InputError
from imagepiece_jax.models.cost import share_of_dense
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.block_plan import Unreachable
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.methods.recommended import replace_placeholder
from imagepiece_jax.reduction.reduction import Reduction

COST_TOLERANCE = 0.02  # allowed miss of a cost, as a share of the dense MACs
MAX_BISECTIONS = 30  # of a schedule's ratio: 2^30 is far more than all token counts


def fit_to_cost(reduction: Reduction, model: ViT) -> Reduction:
    """Replace a reduction's cost `macs` by token counts, or by fields of its method.

    A bare share of the MACs gets the recommended method. A reduction without a cost is
    returned unchanged.
    """
    method = reduction.method
    if method.macs is None:
        return reduction
    target_share = method.macs
    model_facts = model.facts_for_methods()
    if type(method) is Method:  # a placeholder such as Method(macs=0.5)
        method = replace_placeholder(method, model_facts)
    model = model.clone(parent=None)  # hashable, which Flax's stubs do not say
    ratio = _nearest_ratio(method, target_share, model)  # pyrefly: ignore[bad-argument-type]
    fitted_method = method.at_ratio(ratio, model_facts)
    return dataclasses.replace(reduction, method=fitted_method, typed=str(reduction))


# A search makes 32 plans in 30 to 70 ms, and one command fits a reduction many times.
@functools.lru_cache(maxsize=256)
def _nearest_ratio(method, target_share, model):
    """Bisect for the ratio whose share of the dense MACs is nearest to `target_share`.

    Raises InputError if the nearest cost misses by more than COST_TOLERANCE.
    """
    model_facts = model.facts_for_methods()
    shares = {}  # {ratio: share of the dense model's MACs}
    errors = {}  # {ratio: Unreachable}

    def record_share(ratio):
        fitted_method = method.at_ratio(ratio, model_facts)
        plan = fitted_method.plan(model_facts, model.config.arch.prefix)
        shares[ratio] = share_of_dense(model.clone(plan=plan))
        return shares[ratio]

    # Bisection computes neither end, and either may be the nearest.
    record_share(0.0)
    with contextlib.suppress(Unreachable):
        record_share(1.0)
    low_ratio = 0.0
    high_ratio = 1.0
    for _ in range(MAX_BISECTIONS):
        middle_ratio = (low_ratio + high_ratio) / 2
        try:
            costs_less = record_share(middle_ratio) < target_share
        except Unreachable as error:  # too few tokens: the ratio is too high
            errors[middle_ratio] = error
            costs_less = True
        if costs_less:
            high_ratio = middle_ratio
        else:
            low_ratio = middle_ratio
    nearest_ratio = min(shares, key=lambda ratio: abs(shares[ratio] - target_share))
    if abs(shares[nearest_ratio] - target_share) <= COST_TOLERANCE:
        return nearest_ratio
    # If the upper limit was unreachable, its reason says more than the nearest cost.
    nearest_cost = f"the method's nearest cost is {shares[nearest_ratio]:.3f}"
    mistake = InputError(f"macs is {target_share:g}, but {nearest_cost}")
    raise errors.get(high_ratio) or mistake
