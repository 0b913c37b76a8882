"""The methods by name: a new one is a file in this folder and a line in `METHODS`."""

import inspect

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.methods import evit, imagepiece, none
from imagepiece_jax.reduction.methods.method import Method

METHODS: dict[str, Method] = {
    "none": none.METHOD,
    "imagepiece": imagepiece.METHOD,
    "evit": evit.METHOD,
}


def steps(depth, name="none", **fields):
    """Steps of the named method in a model of `depth` blocks.

    `fields` are the keywords of its recipe: an unknown name or field is an InputError
    that lists the known ones.
    """
    if name not in METHODS:
        known = ", ".join(sorted(METHODS))
        raise InputError(f"config.reduction.name is {name!r}; the methods are {known}")
    recipe = METHODS[name].recipe
    known = list(inspect.signature(recipe).parameters)[1:]
    for field in fields:
        if field not in known:
            listed = ", ".join(known) or "none"
            raise InputError(
                f"config.reduction.{field} is not a field of {name!r}, which "
                f"has {listed}"
            )
    return recipe(depth, **fields)
