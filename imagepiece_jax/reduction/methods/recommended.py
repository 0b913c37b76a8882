"""What a share of the MACs alone stands for: the method recommended for a model.

`reduction=0.5` is {"name": "auto", "macs": 0.5}.
"""

import dataclasses
from typing import NamedTuple

from imagepiece_jax.common import fields
from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.methods.method import Method

STAGES = 4  # of equal depth; tokens leave at the start of each but the first


class Recommendation(NamedTuple):
    """A method for one kind of model."""

    name: str
    text: str  # which tokens stay or merge, in words
    in_stages: bool = False  # its `blocks` stand at quarters of the depth


# By kind of model, off the shelf. docs/comparison.md is the page.
TABLE = {
    # The head reads the class token, whose attention ranks the tokens. Three blocks are
    # the fastest at equal accuracy, and at .6 of the MACs level with the dense model:
    # table "clock" of docs/comparison.md, `level` of docs/tables/parts/elsewhere.md.
    # Quarters of the depth, blocks 3, 6 and 9 of 12, are where DynamicViT's authors
    # prune DeiT, and LV-ViT of 16 and 20 blocks.
    "class token": Recommendation("attended", "most attended", in_stages=True),
    # Accuracy by another score than class attention was not measured where the head
    # reads no class token (docs/tables/scores.md), and ToMe needs no score.
    "other pool": Recommendation("tome", "ToMe"),
    # A map or features are read. At .75 and .6 of the MACs no method has a higher IoU
    # with the dense model's maps than ToMe (docs/tables/saliency.md): .86 at .6, where
    # the most attended in three blocks have .82 (docs/tables/parts/elsewhere.md).
    "no classes": Recommendation("tome", "ToMe"),
}


def recommendation(model):
    """The row of `TABLE` for a model's ModelFacts."""
    if not model.classes:
        return TABLE["no classes"]
    return TABLE["class token" if model.pool == "token" else "other pool"]


@dataclasses.dataclass(frozen=True)
class Recommended(Method):
    """No method, until `chosen` knows the model; its other fields are passed on."""

    amounts = ()

    _: dataclasses.KW_ONLY
    macs: float | None = fields.share()

    def chosen(self, model):
        method = recommendation(model)
        own = {name: getattr(self, name) for name in ("macs", "counts", "fate")}
        if method.in_stages and self.counts is None:
            quarters = (model.depth * part // STAGES for part in range(1, STAGES))
            own["blocks"] = tuple(sorted({*quarters}))
        return methods.create(method.name, **own)

    def steps(self, depth):
        raise NotImplementedError("only `chosen` has steps")
