"""The method that is recommended for a model, where only a share of MACs is given."""

from typing import NamedTuple

from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.methods.method import Method, ModelFacts

STAGES = 4  # of equal depth; tokens leave at the start of each but the first
# The least share of MACs at which tokens leave in stages. At .4 the same share in every
# block but the first is as fast, and loses 11.1 points off the shelf in place of 18.2,
# and 3.6 in place of 9.0 recovered (docs/tables/recover). Between .4 and .5 nothing was
# measured.
IN_STAGES_FROM = 0.45


class Recommendation(NamedTuple):
    """The method that is recommended for one kind of model."""

    name: str  # name of the method
    # whether its `blocks` are at quarters of the depth, from IN_STAGES_FROM on
    in_stages: bool = False


# {kind of model: method}, for models that are not trained further. See
# docs/comparison.md.
TABLE = {
    # The head reads the class token, whose attention ranks the tokens. Of equally
    # accurate settings, those of three blocks are the fastest; at .6 of the MACs they
    # are level with the dense model (table "clock" of docs/comparison.md, `level` of
    # docs/tables/parts/elsewhere.md). DynamicViT's authors prune at quarters of the
    # depth, too: DeiT at blocks 3, 6 and 9 of 12, and LV-ViT of 16 and 20 blocks.
    "class token": Recommendation("attended", in_stages=True),
    # The head reads no class token. Scores for such models were not measured
    # (docs/tables/scores.md), and ToMe needs no score.
    "other pool": Recommendation("tome"),
    # There is no head, and features are read. At .75 and .6 of the MACs no method has
    # a higher IoU with the dense model's maps than ToMe (docs/tables/saliency.md): .86
    # at .6, where "attended" has .82 (docs/tables/parts/elsewhere.md). Neighbors of
    # the pooled vector: docs/search.md.
    "no classes": Recommendation("tome"),
}


def recommendation(model: ModelFacts) -> Recommendation:
    """The Recommendation for a model."""
    if not model.classes:
        return TABLE["no classes"]
    if model.pool == "token":
        return TABLE["class token"]
    return TABLE["other pool"]


def recommended(method: Method, model: ModelFacts) -> Method:
    """The method that is recommended for a model, with the fields of a plain one.

    method: has a cost, and may have a schedule
    """
    found = recommendation(model)
    fields = {"macs": method.macs, "counts": method.counts}
    if found.in_stages and method.counts is None:
        # Below a depth of 4 the first stage starts at block 0, and reaches costs that a
        # model with all tokens in that block does not.
        if method.macs < IN_STAGES_FROM and model.depth >= STAGES:
            fields["counts"] = "proportional-1"
        else:
            quarters = {model.depth * part // STAGES for part in range(1, STAGES)}
            fields["blocks"] = tuple(sorted(quarters))
    return methods.METHODS[found.name](**fields)
