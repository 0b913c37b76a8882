"""Choose the recommended method for a model, when only a share of MACs is given."""

from typing import NamedTuple

from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.methods.method import Method, ModelFacts

STAGES = 4  # stages of equal depth; tokens leave at the start of stages 2 to 4
# The least share of MACs at which tokens leave in stages. At .4, an equal share in all
# blocks except the first loses 11.1 points off the shelf instead of 18.2, and 3.6
# instead of 9.0 recovered (docs/results/recover). On a CPU it is as fast. On an H200 it
# is slower: 1.08 instead of 1.50 times the dense rate (docs/results/comparison.md).
# Nothing was measured between .4 and .5.
IN_STAGES_FROM = 0.45


class Recommendation(NamedTuple):
    """Recommended method for a kind of model."""

    name: str  # method name
    # whether `blocks` are at quarters of the depth, for MACs from IN_STAGES_FROM
    in_stages: bool = False


# {kind of model: method}, for models without further training. See docs/comparison.md.
TABLE = {
    # The head reads the class token, whose attention ranks the tokens. Among equally
    # accurate settings, three blocks are the fastest (docs/results/comparison.md). At
    # .6 of the MACs three blocks are level with the dense model
    # (docs/results/parts/elsewhere.md). DynamicViT's authors prune at quarters of the
    # depth, too: DeiT at blocks 3, 6 and 9 of 12, and LV-ViT with 16 and 20 blocks.
    "class token": Recommendation("attended", in_stages=True),
    # The head reads no class token. Scores were not measured for such models
    # (docs/results/scores.md), and ToMe needs no score.
    "other pool": Recommendation("tome"),
    # The model has no head, and users read features. At .75 and .6 of the MACs, no
    # method has a higher IoU with the dense model's maps than ToMe
    # (docs/results/saliency.md): .86 at .6, but .82 for "attended" in three blocks
    # (docs/results/parts/elsewhere.md). Neighbors of the pooled vector: docs/search.md.
    "no classes": Recommendation("tome"),
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
