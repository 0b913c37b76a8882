"""Which token holds each patch, followed through the results of a model's steps."""

import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from imagepiece_jax.reduction.moves import to_nearest_slot
from imagepiece_jax.reduction.ops import gather_rows
from imagepiece_jax.reduction.state import DROPPED, Assignment, Mixing


def patch_slots(results, batch: int, patches: int) -> list:
    """The image token that holds each patch, before the first step and after each.

    results: `Outputs.results`
    Returns a list of [batch, patches] int32, DROPPED for patches that no token holds.
        From the first Mixing or Masking on, its entries are None.
    """
    hard = itertools.takewhile(lambda each: isinstance(each, Assignment), results)
    slots = [path.slot for path in follow([*hard])]
    every_patch = jnp.arange(patches, dtype=jnp.int32)
    slots[0] = jnp.broadcast_to(every_patch, (batch, patches))
    untraced = len(results) + 1 - len(slots)
    return slots + [None] * untraced


class PatchPath(NamedTuple):
    """Where each patch is after some steps, and where its feature comes from.

    After a Mixing a path starts anew from the new tokens.
    """

    # [B, n] int: the token that holds each patch, or DROPPED; None before any step
    slot: jax.Array | None = None
    # [B, n] int: the token whose feature each patch takes, even if it was dropped
    read: jax.Array | None = None
    # [B, n, D]: the last feature of each patch's token before it was dropped; None: not
    # requested
    last: jax.Array | None = None
    # (the path before a Mixing, the Mixing, the tokens before it); None: no Mixing yet
    mixed: tuple["PatchPath", Mixing, jax.Array] | None = None


def follow(results, taps=None, fill=None) -> list[PatchPath]:
    """The PatchPath before the first step, and the PatchPath after each step.

    results, taps: those of `Outputs`; taps are needed for a Mixing, and for `fill`
    fill: what dropped patches get, as in `inference.features`; None: nothing
    """
    paths = [PatchPath()]
    for index, result in enumerate(results):
        x = taps[index].x if taps else None
        paths.append(_followed(paths[-1], result, x, fill))
    return paths


def _followed(path, result, x, fill):
    """The PatchPath after one more step, whose tokens were `x`."""
    if isinstance(result, Mixing):
        return PatchPath(mixed=(path, result, x))
    slot = compose(result.dest, path.slot)
    if fill == "nearest":
        read = compose(to_nearest_slot(x, result), path.read)
        return path._replace(slot=slot, read=read)
    last = None
    # Behind a Mixing a patch has a part of every token, also of those dropped since.
    if fill == "last" or path.mixed:
        last = rows_of(x, path.slot)
        if path.slot is not None:
            last = jnp.where((path.slot == DROPPED)[..., None], path.last, last)
    return path._replace(slot=slot, read=slot, last=last)


def rows_of(values, slot):
    """The rows of values [B, n, ..] at `slot`; all rows where that is None."""
    if slot is None:
        return values
    return gather_rows(values, jnp.maximum(slot, 0))


def compose(outer, inner):
    """Two slot maps, one after the other: outer[inner], where DROPPED stays DROPPED.

    outer: [B, n] int
    inner: [B, m] int in [0, n), or DROPPED; None: the identity
    Returns [B, m] int.
    """
    if inner is None:
        return outer
    chex.assert_rank([outer, inner], 2)
    # Minus one would wrap to the last slot: guard the gather, then mask.
    out = gather_rows(jnp.asarray(outer), jnp.maximum(inner, 0))
    return jnp.where(inner == DROPPED, DROPPED, out)
