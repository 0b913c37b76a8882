"""Which token each patch is in, followed through the results of a model's steps."""

import chex
import jax.numpy as jnp

from imagepiece_jax.reduction.ops import gather_rows
from imagepiece_jax.reduction.tokens import DROPPED, Assignment


def patch_slots(results, batch: int, patches: int) -> list:
    """Image token that holds each patch, before the first step and after each.

    results: `Outputs.results`
    Returns [batch, patches] int32 arrays, with DROPPED where no token does; None from
    the first step on whose tokens overlap (Mixing) or are only masked (Masking).
    """
    slots = jnp.arange(patches, dtype=jnp.int32)
    followed = [jnp.broadcast_to(slots, (batch, patches))]
    for result in results:
        before = followed[-1]
        known = before is not None and isinstance(result, Assignment)
        followed.append(compose(result.dest, before) if known else None)
    return followed


def compose(outer, inner):
    """Slots of `inner` sent through `outer`; dropped stays dropped.

    outer: [B, n] int
    inner: [B, m] int in [0, n), or DROPPED
    Returns [B, m] int.
    """
    chex.assert_rank([outer, inner], 2)
    # Minus one would wrap to the last slot: guard the gather, then mask.
    out = gather_rows(jnp.asarray(outer), jnp.maximum(inner, 0))
    return jnp.where(inner == DROPPED, DROPPED, out)


def unmerge(values, slots, fill=0.0):
    """Spread slot values back over the patches.

    values: [B, n, D], of the slots
    slots: [B, n0] int, of `patch_slots`
    fill: what dropped patches get: a number, or [B, D], a vector an image such as the
    class token
    Returns [B, n0, D].
    """
    chex.assert_rank([values, slots], [3, 2])
    fill = jnp.asarray(fill, values.dtype)
    fill = fill[:, None, :] if fill.ndim else fill[None, None, None]
    spread = jnp.take_along_axis(values, jnp.maximum(slots, 0)[:, :, None], axis=1)
    return jnp.where((slots == DROPPED)[:, :, None], fill, spread)
