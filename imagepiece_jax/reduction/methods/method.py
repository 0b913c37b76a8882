"""What one method exports, and all that any other room may ask of it."""

import dataclasses
from collections.abc import Callable

from imagepiece_jax.reduction.schedule import Step


@dataclasses.dataclass(frozen=True)
class Method:
    """A token reduction.

    recipe: (depth, **fields) -> steps; its keywords are the method's config fields.
    extra_macs: (step, n_in, embed_dim, num_heads) -> MACs of its own layers, if any.
    """

    recipe: Callable[..., tuple[Step, ...]]
    extra_macs: Callable[..., int] | None = None
