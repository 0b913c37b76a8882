"""ImagePiece + ToMe: retokenise, and merge by likeness where ImagePiece prunes."""

import dataclasses
import functools

from imagepiece_jax.reduction.methods import imagepiece
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.reducers import Bipartite


@functools.wraps(imagepiece.recipe, assigned=())  # its fields are ImagePiece's
def recipe(depth, **fields):
    """ImagePiece's steps; where they prune, bipartite matching removes as many.

    It is over all image tokens and removes at most half of them, so that below
    keep_rate .5 more tokens stay than ImagePiece keeps.
    """
    steps = imagepiece.recipe(depth, **fields)
    matching = Bipartite(fields.get("metric", "key"))
    return tuple(
        dataclasses.replace(step, reducer=matching, rule="keep_half")
        if step.rule == "keep"
        else step
        for step in steps
    )


METHOD = Method(recipe=recipe)
