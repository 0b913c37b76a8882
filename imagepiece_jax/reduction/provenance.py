"""Which token each patch is in, followed through the results of a model's steps."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from imagepiece_jax.reduction.ops import gather_rows
from imagepiece_jax.reduction.tokens import DROPPED, Assignment, Mixing, to_nearest_slot


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
        if before is not None and isinstance(result, Assignment):
            followed.append(compose(result.dest, before))
        else:
            followed.append(None)
    return followed


class Path(NamedTuple):
    """Which token each patch is in after some steps, and what it reads there.

    Followed from the first step on, so that the maps of all blocks share it. After a
    Mixing a path starts anew, from the tokens that it made.
    """

    slot: jax.Array | None = None  # [B, n], or DROPPED; None before the first step
    # [B, n], the slot that a patch has its feature of; dropped ones may have one.
    read: jax.Array | None = None
    # [B, n, D], what the token of a dropped patch was then; None: not requested.
    last: jax.Array | None = None
    # The path before a Mixing, the Mixing and the tokens before it.
    mixed: tuple["Path", Mixing, jax.Array] | None = None


def follow(results, taps, fill=None) -> list[Path]:
    """A Path for before the first step, and one for after each.

    results, taps: of `Outputs`
    fill: what dropped patches read, as in `inference.features`; None: nothing
    """
    paths = [Path()]
    for result, tap in zip(results, taps, strict=True):
        paths.append(_followed(paths[-1], result, tap.x, fill))
    return paths


def _followed(path, result, x, fill):
    """`path` after one more step, of tokens `x`."""
    if isinstance(result, Mixing):
        return Path(mixed=(path, result, x))
    slot = _compose(result.dest, path.slot)
    if fill == "nearest":
        read = _compose(to_nearest_slot(x, result), path.read)
        return path._replace(slot=slot, read=read)
    last = None
    if fill == "last" or path.mixed:
        last = rows_of(x, path.slot)
        if path.slot is not None:
            last = jnp.where((path.slot == DROPPED)[..., None], path.last, last)
    return path._replace(slot=slot, read=slot, last=last)


def _compose(outer, inner):
    return outer if inner is None else compose(outer, inner)


def rows_of(values, slot):
    """Rows of [B, n, D], all of them where `slot` is None."""
    return values if slot is None else gather_rows(values, jnp.maximum(slot, 0))


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
