"""Move and merge tokens by a reducer's result; `apply_result` is the entry.

A merged token is a mean weighted by sizes, or by an Assignment's `weight`.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagepiece_jax.kernels import merging, ranking
from imagepiece_jax.kernels.array_shapes import TokenIndices, TokenRows
from imagepiece_jax.kernels.similarity import cosine_similarity
from imagepiece_jax.reduction.state import Assignment, Masking, Mixing, TokenState


def apply_result(
    state: TokenState, result: Assignment | Mixing | Masking
) -> TokenState:
    """Apply a reducer's result to the tokens.

    The prefix stays in front. An Assignment's slots get weighted means (or sums) of
    features, sums of sizes, and mean coordinates over patches.
    """
    chex.assert_rank(state.x, 3)
    if isinstance(result, Masking):
        return _apply_masking(state, result)
    if isinstance(result, Mixing):
        return _apply_mixing(state, result)
    num_tokens = state.num_prefix + result.slot_of_token.shape[1]
    chex.assert_shape(state.x, (None, num_tokens, None))
    x, size, attn_size = merging.merge_tokens(
        state.x, state.size, state.attn_size, result, state.patches
    )
    mask = state.mask
    if mask is not None:  # a slot with a live token is live
        # [batch, slots, tokens]
        is_member = merging.is_in_slot(result.slot_of_token, result.n_out)
        mask = jnp.max(jnp.where(is_member, mask[:, None, :], 0), axis=-1)
    coordinates = state.coordinates
    if coordinates is not None:  # a slot's is the mean over its patches
        image_size = state.image_rows(state.size)
        y_and_x = coordinates[..., 0], coordinates[..., 1]  # [batch, tokens] each
        sums = [result.sum_slots(image_size * coordinate) for coordinate in y_and_x]
        coordinates = jnp.stack(sums, axis=-1) / result.sum_slots(image_size)[..., None]
    return dataclasses.replace(
        state,
        x=x,
        size=size,
        attn_size=attn_size,
        mask=mask,
        coordinates=coordinates,
        grid=None,  # reduced tokens have no grid
    )


def _apply_mixing(state, result):
    """Apply a Mixing: the image tokens become its slots."""
    matrix = result.matrix.astype(jnp.float32)  # [batch, slots, tokens]
    x = merging.mix_tokens(state.x, matrix)
    coordinates = state.coordinates
    if coordinates is not None:
        coordinates = weighted_coordinates(matrix, coordinates)
    attn_size = None
    if result.attn_size is not None:
        prefix_size = state.effective_size[:, : state.num_prefix]
        attn_size = jnp.concatenate([prefix_size, result.attn_size], axis=1)
    # All sizes are 1: every token mixes all patches, so patches cannot be counted.
    return TokenState(
        x=x,
        size=jnp.ones(x.shape[:2], jnp.float32),
        coordinates=coordinates,
        attn_size=attn_size,
        num_prefix=state.num_prefix,
    )


def weighted_coordinates(
    weight: Float[Array, "batch slots tokens"],
    coordinates: Float[Array, "batch tokens 2"],
) -> Float[Array, "batch slots 2"]:
    """Average coordinates by weights >= 0; zero weights give the plain mean."""
    weight = jnp.where(jnp.sum(weight, axis=-1, keepdims=True) > 0, weight, 1.0)
    shares = weight / jnp.sum(weight, axis=-1, keepdims=True)
    return jnp.einsum("bmn,bnd->bmd", shares, coordinates, precision="highest")


def _apply_masking(state, result):
    """Apply a Masking: no token leaves, and `append` adds a token at the end."""
    mask_before = state.mask
    coordinates = state.coordinates
    state = dataclasses.replace(state, mask=result.keep, grid=None)
    if result.append is None:
        return state
    if coordinates is not None:
        if mask_before is None:
            mask_before = 1.0  # all tokens were live
        # The appended token lies in the middle of the tokens masked by this step.
        drop_mask = mask_before - result.keep
        weight = jax.lax.stop_gradient(drop_mask * state.image_rows(state.size))
        middle = weighted_coordinates(weight[:, None], coordinates)  # [batch, 1, 2]
        coordinates = jnp.concatenate([coordinates, middle], axis=1)
    appended_x = result.append[:, None].astype(state.x.dtype)
    appended_size = jnp.ones((appended_x.shape[0], 1), jnp.float32)
    attn_size = state.attn_size
    if attn_size is not None:
        attn_size = jnp.concatenate([attn_size, appended_size], axis=1)
    appended_mask = appended_size.astype(result.keep.dtype)
    return dataclasses.replace(
        state,
        x=jnp.concatenate([state.x, appended_x], axis=1),
        size=jnp.concatenate([state.size, appended_size], axis=1),
        attn_size=attn_size,
        mask=jnp.concatenate([result.keep, appended_mask], axis=1),
        coordinates=coordinates,
    )


def find_nearest_slots(x: TokenRows, result: Assignment) -> TokenIndices:
    """Find every token's slot; a dropped token gets its most similar kept token's slot.

    x: tokens before the step, compared by cosine; ties go to the first token
    """
    slot_of_token = result.slot_of_token
    is_dropped = slot_of_token == merging.DROPPED
    max_dropped = slot_of_token.shape[1] - result.n_out  # no slot is empty
    if not max_dropped:
        return slot_of_token
    gather = ranking.gather_rows
    dropped_number = ranking.index_kept_tokens(is_dropped)  # from 0; -1: not dropped
    dropped_rows = gather(x, ranking.invert_order(dropped_number, max_dropped))
    cosines = cosine_similarity(dropped_rows, x)  # [batch, dropped, tokens]
    # -2 is below every cosine, so no dropped token is found.
    kept_cosines = jnp.where(is_dropped[:, None, :], -2.0, cosines)
    slot_of_dropped = gather(slot_of_token, ranking.find_first_largest(kept_cosines)[1])
    slot_if_dropped = gather(slot_of_dropped, jnp.maximum(dropped_number, 0))
    return jnp.where(is_dropped, slot_if_dropped, slot_of_token)
