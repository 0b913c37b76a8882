"""The methods by name: a new one is a file in this folder and a line in `METHODS`."""

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.methods import (
    dynamicvit,
    evit,
    grid_pooling,
    imagepiece,
    imagepiece_dynamicvit,
    imagepiece_tome,
    none,
    random,
    spvit,
    token_learner,
    token_pooling,
    tome,
)
from imagepiece_jax.reduction.methods.method import Method

METHODS: dict[str, Method] = {
    "none": none.METHOD,
    "imagepiece": imagepiece.METHOD,
    "evit": evit.METHOD,
    "dynamicvit": dynamicvit.METHOD,
    "spvit": spvit.METHOD,
    "tome": tome.METHOD,
    "token_learner": token_learner.METHOD,
    "token_pooling": token_pooling.METHOD,
    "random": random.METHOD,
    "grid_pooling": grid_pooling.METHOD,
    "imagepiece_tome": imagepiece_tome.METHOD,
    "imagepiece_dynamicvit": imagepiece_dynamicvit.METHOD,
}


def find(name="none", **fields):
    """The named Method; InputError for an unknown name or a field it does not have."""
    if name not in METHODS:
        known = ", ".join(sorted(METHODS))
        raise InputError(f"config.reduction.name is {name!r}; the methods are {known}")
    known = METHODS[name].fields
    for field in fields:
        if field not in known:
            listed = ", ".join(known) or "none"
            raise InputError(
                f"config.reduction.{field} is not a field of {name!r}, which "
                f"has {listed}"
            )
    return METHODS[name]


def steps(depth, name="none", **fields):
    """Steps of the named method in a model of `depth` blocks; InputErrors as `find`."""
    return find(name, **fields).call("recipe", depth, **fields)
