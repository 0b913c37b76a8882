"""ImagePiece + ToMe: retokenise, and merge by likeness where ImagePiece prunes."""

import dataclasses

from imagepiece_jax.reduction.methods import imagepiece
from imagepiece_jax.reduction.methods.method import Method, takes_fields_of
from imagepiece_jax.reduction.reducers import Bipartite


@takes_fields_of(imagepiece.recipe)
def recipe(depth, metric="key", **fields):
    """ImagePiece's steps; where they prune, bipartite matching merges to the same
    count.

    It is over all image tokens and removes at most half of them: with a keep_rate below
    .5 more tokens stay than ImagePiece keeps. `metric` is what both compare.
    """
    steps = imagepiece.recipe(depth, metric=metric, **fields)
    prune = {"reducer": Bipartite(metric), "rule": "keep_half"}
    return tuple(
        dataclasses.replace(step, **prune) if step.rule == "keep" else step
        for step in steps
    )


METHOD = Method(recipe=recipe)
