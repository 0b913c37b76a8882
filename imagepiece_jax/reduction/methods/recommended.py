"""Choose the recommended method for a model, when only a share of MACs is given."""

from typing import NamedTuple

from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.methods.method import Method, ModelFacts

STAGES = 4  # stages of equal depth; tokens leave at the start of stages 2 to 4
# Below this share of the MACs, the same share leaves in every block except the first:
# three blocks would have to remove too much at once (docs/results/peaks.md).
IN_STAGES_FROM = 0.45


class Recommendation(NamedTuple):
    """Recommended method for a kind of model."""

    name: str  # method name
    # whether `blocks` are at quarters of the depth, for MACs from IN_STAGES_FROM
    in_stages: bool = False


# {kind of model: method}, for models without further training. docs/results/peaks.md
# has the rule and the figures.
TABLE = {
    "class token": Recommendation("peaks", in_stages=True),  # which the head reads
    "other pool": Recommendation("tome"),
    "no classes": Recommendation("tome"),  # users read features
}


def recommendation(model: ModelFacts) -> Recommendation:
    if not model.classes:
        return TABLE["no classes"]
    if model.pool == "token":
        return TABLE["class token"]
    return TABLE["other pool"]


def recommended(method: Method, model: ModelFacts) -> Method:
    """Replace a placeholder Method by the recommended method, with the same cost.

    method: sets `macs`, and may set a schedule in `counts`
    """
    choice = recommendation(model)
    fields = {"macs": method.macs, "counts": method.counts}
    if choice.in_stages and method.counts is None:
        # Below a depth of 4, stages start at block 0. This reaches costs out of reach
        # for "proportional-1", which keeps all tokens in block 0.
        if method.macs < IN_STAGES_FROM and model.depth >= STAGES:
            fields["counts"] = "proportional-1"
        else:
            quarters = {model.depth * part // STAGES for part in range(1, STAGES)}
            fields["blocks"] = tuple(sorted(quarters))
    return methods.METHODS[choice.name](**fields)
