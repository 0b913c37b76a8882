"""Track every patch's token through a model's steps."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.kernels.ranking import gather_rows
from imagepiece_jax.reduction.moves import find_nearest_slots
from imagepiece_jax.reduction.state import Assignment, Mixing, ReducerInputs, Result


def list_token_maps(
    results: Sequence[Result], batch_size: int, num_patches: int
) -> list[Int[Array, "batch patches"] | None]:
    """Find every patch's image token, before the first step and after every step.

    results: `Outputs.results`
    Returns int32 maps, DROPPED for patches without a token. From the first Mixing or
        Masking on, entries are None.
    """
    assignments = itertools.takewhile(
        lambda result: isinstance(result, Assignment), results
    )
    patch_paths = follow_patches([*assignments])
    token_maps = [patch_path.token_of_patch for patch_path in patch_paths]
    every_patch = jnp.arange(num_patches, dtype=jnp.int32)
    # The first path is before any step, where it has no map.
    token_maps[0] = jnp.broadcast_to(every_patch, (batch_size, num_patches))
    return token_maps + [None] * (len(results) + 1 - len(token_maps))


class PatchPath(NamedTuple):
    """Positions of all patches after some steps, and sources of their features.

    After a Mixing, a path starts again from the new tokens.
    """

    # the patch's token, or DROPPED; None before any step
    token_of_patch: Int[Array, "batch patches"] | None = None
    # the source token of the patch's feature, also for a dropped patch
    source_token: Int[Array, "batch patches"] | None = None
    # last feature of the patch's token before it was dropped; None: not requested
    last_feature: Any = None  # Float[Array, "batch patches dim"]
    # (path before a Mixing, the Mixing, tokens before the Mixing); None: no Mixing yet
    before_mixing: tuple["PatchPath", Mixing, jax.Array] | None = None


def follow_patches(
    results: Sequence[Result],
    reducer_inputs: Sequence[ReducerInputs] | None = None,
    fill: str | None = None,
) -> list[PatchPath]:
    """Compute the PatchPaths before the first step and after every step.

    results, reducer_inputs: from `Outputs`; a Mixing and `fill` need reducer_inputs
    fill: feature of a dropped patch, see `inference.features`; None: no feature
    """
    patch_paths = [PatchPath()]
    for index, result in enumerate(results):
        tokens = reducer_inputs[index].x if reducer_inputs else None
        patch_paths.append(_follow_step(patch_paths[-1], result, tokens, fill))
    return patch_paths


def _follow_step(patch_path, result, tokens, fill):
    """Follow one step; tokens: before it, [batch, tokens, dim], None: not known."""
    # A Mixing gives every slot a part of every token: no map says where a patch is, so
    # the path starts afresh and remembers what was mixed.
    if isinstance(result, Mixing):
        return PatchPath(before_mixing=(patch_path, result, tokens))
    token_before = patch_path.token_of_patch  # [batch, patches], or None
    token_of_patch = compose_maps(result.slot_of_token, token_before)
    if fill == "nearest":  # a dropped patch has the feature of the nearest kept token
        nearest_slots = find_nearest_slots(tokens, result)
        source_token = compose_maps(nearest_slots, patch_path.source_token)
        return patch_path._replace(
            token_of_patch=token_of_patch, source_token=source_token
        )
    last_feature = None
    mixing = patch_path.before_mixing
    # After a Mixing, a patch has a part of every token, dropped tokens included.
    if fill == "last" or mixing:
        last_feature = gather_tokens(tokens, token_before)
        if token_before is not None:
            is_dropped = (token_before == DROPPED)[..., None]
            last_feature = jnp.where(is_dropped, patch_path.last_feature, last_feature)
    # The token that a patch is in is also the source of its feature.
    return PatchPath(token_of_patch, token_of_patch, last_feature, mixing)


def gather_tokens(
    values: Shaped[Array, "batch tokens ..."], slot: Int[Array, "batch patches"] | None
) -> Shaped[Array, "batch rows ..."]:
    """Gather rows of values at `slot`; None: return all rows."""
    if slot is None:
        return values
    return gather_rows(values, jnp.maximum(slot, 0))


def compose_maps(
    outer: Int[Array, "batch slots"], inner: Int[Array, "batch patches"] | None
) -> Int[Array, "batch mapped"]:
    """Compose two slot maps: outer[inner]. DROPPED stays DROPPED.

    inner: slots of `outer`, or DROPPED; None: the identity
    """
    if inner is None:
        return outer
    chex.assert_rank([outer, inner], 2)
    # DROPPED (-1) would read the last slot: clip the index, then mask the result.
    composed_map = gather_rows(jnp.asarray(outer), jnp.maximum(inner, 0))
    return jnp.where(inner == DROPPED, DROPPED, composed_map)
