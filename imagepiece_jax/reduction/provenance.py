"""Which token each patch is in, followed through the results of a model's steps."""

import itertools
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
    hard = itertools.takewhile(lambda each: isinstance(each, Assignment), results)
    slots = [path.slot for path in follow([*hard])]
    every_patch = jnp.arange(patches, dtype=jnp.int32)
    slots[0] = jnp.broadcast_to(every_patch, (batch, patches))
    untraced = len(results) + 1 - len(slots)
    return slots + [None] * untraced


class Path(NamedTuple):
    """Which token each patch is in after some steps, and what it reads there.

    After a Mixing a path starts anew, from the tokens that it made.
    """

    slot: jax.Array | None = None  # [B, n], or DROPPED; None before the first step
    # [B, n], the slot that a patch has its feature of; dropped ones may have one.
    read: jax.Array | None = None
    # [B, n, D], what the token of a dropped patch was then; None: not requested.
    last: jax.Array | None = None
    # The path before a Mixing, the Mixing and the tokens before it.
    mixed: tuple["Path", Mixing, jax.Array] | None = None


def follow(results, taps=None, fill=None) -> list[Path]:
    """A Path for before the first step, and one for after each.

    results, taps: of `Outputs`; without taps for Assignments, and no `fill`
    fill: what dropped patches read, as in `inference.features`; None: nothing
    """
    paths = [Path()]
    for index, result in enumerate(results):
        x = taps[index].x if taps else None
        paths.append(_followed(paths[-1], result, x, fill))
    return paths


def _followed(path, result, x, fill):
    """`path` after one more step, of tokens `x`."""
    if isinstance(result, Mixing):
        return Path(mixed=(path, result, x))
    slot = compose(result.dest, path.slot)
    if fill == "nearest":
        read = compose(to_nearest_slot(x, result), path.read)
        return path._replace(slot=slot, read=read)
    last = None
    if fill == "last" or path.mixed:
        last = rows_of(x, path.slot)
        if path.slot is not None:
            last = jnp.where((path.slot == DROPPED)[..., None], path.last, last)
    return path._replace(slot=slot, read=slot, last=last)


def rows_of(values, slot):
    """Rows of [B, n, ..], all of them where `slot` is None."""
    if slot is None:
        return values
    return gather_rows(values, jnp.maximum(slot, 0))


def compose(outer, inner):
    """Slots of `inner` sent through `outer`; dropped stays dropped.

    outer: [B, n] int
    inner: [B, m] int in [0, n), or DROPPED; None: the n themselves
    Returns [B, m] int.
    """
    if inner is None:
        return outer
    chex.assert_rank([outer, inner], 2)
    # Minus one would wrap to the last slot: guard the gather, then mask.
    out = gather_rows(jnp.asarray(outer), jnp.maximum(inner, 0))
    return jnp.where(inner == DROPPED, DROPPED, out)
