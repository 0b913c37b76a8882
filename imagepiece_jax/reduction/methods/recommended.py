"""Choose the recommended method for a model, when only a share of MACs is given."""

from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.methods.method import Method, ModelFacts

NUM_STAGES = 4  # stages of equal depth; tokens leave at the start of stages 2 to 4
# Below this share of the MACs, the same share leaves in every block except the first:
# three blocks would have to remove too much at once (docs/results/peaks.md).
LEAST_STAGED_MACS = 0.45


def replace_placeholder(method: Method, facts: ModelFacts) -> Method:
    """Replace a placeholder Method by the recommended method, with the same cost.

    method: sets `macs`, and may set a schedule in `counts`
    """
    fields = {"macs": method.macs, "counts": method.counts}
    # For models without further training; docs/results/peaks.md has the figures. Of a
    # model without classes, users read all tokens' features.
    if not facts.classes or facts.pool != "token":
        return methods.METHODS["tome"](**fields)
    if method.counts is None:
        # Below a depth of 4, stages start at block 0. This reaches costs out of reach
        # for "proportional-1", which keeps all tokens in block 0.
        macs = method.macs or 0  # set in a placeholder
        if macs < LEAST_STAGED_MACS and facts.depth >= NUM_STAGES:
            fields["counts"] = "proportional-1"
        else:
            stages = range(1, NUM_STAGES)
            stage_starts = {facts.depth * stage // NUM_STAGES for stage in stages}
            fields["blocks"] = tuple(sorted(stage_starts))
    return methods.METHODS["peaks"](**fields)
