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
    trained_params: dict[str, Any] = {}
    for name, subtree in params.items():
        is_bias_or_factor = name in ("bias", "gamma")
        if isinstance(subtree, Mapping):
            trained_params[name] = trained_part(subtree, kind)
        elif is_norm or (kind == "biases" and is_bias_or_factor):
            trained_params[name] = subtree
        else:
            trained_params[name] = None
    return trained_params


def with_trained(params: Mapping[str, Any], trained_params: Any) -> Mapping[str, Any]:
    """Put the parameters of a `trained_part` back into `params`."""
    if trained_params is None:
        return params
    if not isinstance(params, Mapping):
        return trained_params
    return {name: with_trained(params[name], trained_params[name]) for name in params}
