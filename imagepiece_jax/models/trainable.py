"""The trained part of a model's parameters: all, biases or norms."""

from collections.abc import Mapping
from typing import Any

# "norms": norm scales and biases. "biases": "norms", all other biases, and the layer
# scale factors.
TRAINED = ("all", "biases", "norms")


def trained_part(params: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Replace frozen parameters by None; `kind` is in TRAINED."""
    # JAX treats None as an empty tree, so gradients, moments and exchanges between
    # devices exist for trained parameters only.
    if kind == "all":
        return params
    is_norm = "scale" in params
    trained: dict[str, Any] = {}
    for name, value in params.items():
        is_bias = name in ("bias", "gamma")
        if isinstance(value, Mapping):
            trained[name] = trained_part(value, kind)
        elif is_norm or (kind == "biases" and is_bias):
            trained[name] = value
        else:
            trained[name] = None
    return trained


def with_trained(params: Mapping[str, Any], trained: Any) -> Mapping[str, Any]:
    """Put the parameters of a `trained_part` back into `params`."""
    if trained is None:
        return params
    if not isinstance(params, Mapping):
        return trained
    return {name: with_trained(params[name], trained[name]) for name in params}
