"""The part of a model's parameters that is trained: all, or norms and biases."""

from collections.abc import Mapping
from typing import Any

# Which parameters are trained. "norms": scales and biases of norms; "biases": these,
# all other biases and the factors of layer scale.
TRAINED = ("all", "biases", "norms")


def trained_part(params: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """The tree of parameters with None in place of those that are not trained.

    JAX treats None as an empty tree. Gradients, moments and exchanges between devices
    exist only for what is trained.

    part: one of TRAINED
    """
    if part == "all":
        return params
    is_norm = "scale" in params
    found = {}
    for name, value in params.items():
        is_bias = name in ("bias", "gamma")
        if isinstance(value, Mapping):
            found[name] = trained_part(value, part)
        elif is_norm or (part == "biases" and is_bias):
            found[name] = value
        else:
            found[name] = None
    return found


def with_trained(params: Mapping[str, Any], trained: Any) -> Mapping[str, Any]:
    """`params` with the parameters of a `trained_part` in place of its own."""
    if trained is None:
        return params
    if not isinstance(params, Mapping):
        return trained
    return {name: with_trained(params[name], trained[name]) for name in params}
