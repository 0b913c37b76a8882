"""A trained model under one reduction, as analyses compare them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.models.vit import ViT


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
    """A trained model under one reduction, with its variables.

    untrained: the weights lack what the reduction learns, so its selectors are fresh
    and their figures say nothing about the method.
    """

    label: str
    reduction: Mapping[str, Any]
    model: ViT
    variables: Mapping[str, Any]
    untrained: bool
    gmacs: float
