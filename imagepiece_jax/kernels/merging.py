"""Merging tokens into slots by an Assignment of `reduction.state`, called `result`.

By definition, `slot_matrix` mixes all tokens. With a SlotIndex tokens are gathered, and
only slots that absorb tokens are summed. Neither the forward nor the backward pass over
features scatters. In two bytes, one product may merge the prefix and many tokens.
"""

import functools
from typing import Self

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from imagepiece_jax.common.nodes import onnx_op
from imagepiece_jax.kernels.choice import is_fast, is_latency_bound, is_reference
from imagepiece_jax.kernels.ranking import gather_rows, sum_arrays

DROPPED = -1  # instead of a slot, for a dropped token
FEW_ABSORBED = 24  # up to this many absorbed tokens are summed without a product


@struct.dataclass
class SlotIndex:
    """Tokens per slot, as indices for gathering."""

    # int32; the token kept by every slot
    kept_tokens: Int[Array, "batch slots"]
    # the rest of the tokens, except dropped tokens
    absorbed_tokens: Int[Array, "batch absorbed"]
    target_slots: Int[Array, "batch absorbed"]  # of `absorbed_tokens`
    # the tokens kept by `target_slots`; a single token if all join one slot
    partner_tokens: Int[Array, "batch absorbed"] | Int[Array, "batch 1"]

    @classmethod
    def one_token_each(cls, kept_tokens: Int[Array, "batch slots"]) -> Self:
        """Make the index of slots with one token each."""
        none = jnp.zeros((kept_tokens.shape[0], 0), jnp.int32)
        return cls(kept_tokens, none, none, none)

    @property
    def partner_slots(self) -> Int[Array, "batch groups"]:
        """Slots of the partners, listed once per partner."""
        return self.target_slots[:, : self.partner_tokens.shape[1]]


def is_in_slot(dest: Int[Array, "B n"], n_out: int) -> Bool[Array, "B {n_out} n"]:
    """Mark the tokens in every slot."""
    dest = dest[:, None, :]
    slots = jnp.arange(n_out, dtype=dest.dtype)
    return dest == slots[None, :, None]


@onnx_op
def slot_matrix(
    weight: Float[Array, "B n"], dest: Int[Array, "B n"], n_out: int, mean: bool
) -> Float[Array, "B {n_out} n"]:
    """Token factors in every slot's mean (or sum)."""
    matrix = jnp.where(is_in_slot(dest, n_out), weight[:, None, :], 0)
    if not mean:
        return matrix
    return matrix / jnp.sum(matrix, axis=-1, keepdims=True)


def mix_tokens(x, matrix):
    """Keep the prefix of x and mix its image tokens by a matrix [B, n_out, n]."""
    prefix = x.shape[1] - matrix.shape[2]
    image = x[:, prefix:].astype(jnp.float32)
    mixed = jnp.einsum("bon,bnd->bod", matrix, image, precision="highest")
    both = [x[:, :prefix], mixed.astype(x.dtype)]
    return jnp.concatenate(both, axis=1)


@onnx_op
def sum_by_slot(values, dest, n_out):
    """Sum values per slot by comparing destinations. [B, n] -> [B, n_out]."""
    belongs = is_in_slot(dest, n_out)
    terms = jnp.where(belongs, values[:, None, :], 0)
    return jnp.sum(terms, axis=-1)


# By a SlotIndex. The handwritten backward pass is another gather. JAX would
# differentiate a gather into a scatter-add, which is slow, and not deterministic on
# GPUs.


def sum_slots(values, result):
    """Sum token values per slot. [B, n] -> [B, n_out]."""
    index = result.index
    if index is None:
        return sum_by_slot(values, result.slot_of_token, result.n_out)
    first = gather_rows(values, index.kept_tokens)
    if not index.absorbed_tokens.shape[1]:
        return first
    absorbed = gather_rows(values, index.absorbed_tokens)
    return first + sum_by_slot(absorbed, index.target_slots, result.n_out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _move_by_index(x, weight, total, index, dest, mean):
    """Move tokens to their slots, in one pass over x. -> [B, prefix + n_out, D].

    x: [B, prefix + n, D]
    weight: [B, n], token weights; None: all weights are 1
    total: [B, n_out], divisors of the weighted sums; None: sums are not divided
    index: as in `Assignment`
    dest: as in `Assignment`
    mean: whether slots hold means; a token alone in its slot then stays unchanged
    """
    # A slot with one token reads a row of x. A slot that absorbs tokens reads a row
    # of `rows`, a small array [B, m, D] of weighted sums.
    prefix = x.shape[1] - dest.shape[1]
    slot = jnp.arange(prefix + index.kept_tokens.shape[1], dtype=jnp.int32)[None]
    front = ((0, 0), (prefix, 0))
    row = jnp.where(slot < prefix, slot, jnp.pad(index.kept_tokens + prefix, front))
    single = gather_rows(x, row)
    if weight is not None and not mean:
        factor = gather_rows(weight, index.kept_tokens)
        factor = jnp.pad(factor, front, constant_values=1.0)
        single = single.astype(jnp.float32) * factor[:, :, None]
        single = single.astype(x.dtype)
    plain = weight is None and total is None
    if plain or not index.absorbed_tokens.shape[1]:
        return single
    rows = _group_sums(x, weight, total, index, prefix)
    grouped = is_in_slot(
        index.partner_slots, index.kept_tokens.shape[1]
    )  # [B, n_out, m]
    group = jnp.arange(rows.shape[1], dtype=jnp.int32)[None, None, :]
    group, has_group = _largest_and_any(jnp.where(grouped, group, 0), grouped)
    together = gather_rows(rows.astype(x.dtype), jnp.pad(group, front))
    has_group = jnp.pad(has_group, front)
    return jnp.where(has_group[:, :, None], together, single)


def _group_sums(x, weight, total, index, prefix):
    """Weighted token sums per group, [B, m, D] float32."""
    absorbs = (
        index.partner_slots[:, :, None] == index.target_slots[:, None, :]
    )  # [B, m, e]
    # Up to FEW absorbed tokens are gathered for every group and summed: a matrix
    # product would need copies. For more tokens the product is cheaper, because the
    # sums grow with the square of the token count.
    if index.absorbed_tokens.shape[1] > FEW_ABSORBED:
        return _group_product(x, weight, total, index, prefix, absorbs)
    absorbed = jnp.where(absorbs, index.absorbed_tokens[:, None, :], 0)
    tokens = jnp.concatenate([index.partner_tokens[:, :, None], absorbed], axis=2)
    in_front = ((0, 0), (0, 0), (1, 0))
    taken = jnp.pad(absorbs, in_front, constant_values=True)
    factor = jnp.where(taken, _gather_weights(weight, tokens), 0)
    if total is not None:
        factor = factor / gather_rows(total, index.partner_slots)[:, :, None]
    rows = gather_rows(x, tokens + prefix).astype(jnp.float32)
    return jnp.sum(rows * factor[..., None], axis=2)


def _group_product(x, weight, total, index, prefix, absorbs):
    """`_group_sums` by a matrix product; absorbs: [B, m, e] bool."""
    first = index.partner_tokens
    absorbed = index.absorbed_tokens
    factor_of_first = _gather_weights(weight, first)[:, :, None]
    weights = _gather_weights(weight, absorbed)[:, None, :]
    factor = jnp.where(absorbs, weights, 0)
    if total is not None:
        divisor = gather_rows(total, index.partner_slots)[:, :, None]
        factor_of_first = factor_of_first / divisor
        factor = factor / divisor
    rows = gather_rows(x, absorbed + prefix).astype(jnp.float32)
    rows = jnp.einsum("bme,bed->bmd", factor, rows, precision="highest")
    first_rows = gather_rows(x, first + prefix).astype(jnp.float32)
    return rows + factor_of_first * first_rows


def _gather_weights(weight, tokens):
    if weight is None:
        return jnp.ones(tokens.shape, jnp.float32)
    return gather_rows(weight, tokens)


def _largest_and_any(values, flags):
    """Reduce int32 values >= 0 by max and flags by any, along the last axis, at once.

    Returns (largest value, whether any flag is True).
    """

    def join(a, b):
        largest = jnp.maximum(a[0], b[0])
        any_of_them = a[1] | b[1]
        return largest, any_of_them

    start = (jnp.int32(0), jnp.bool_(False))
    return jax.lax.reduce((values, flags), start, join, (values.ndim - 1,))


def _move_forward(x, weight, total, index, dest, mean):
    moved = _move_by_index(x, weight, total, index, dest, mean)
    share = weight
    if total is not None:
        share = 1.0 if weight is None else weight
        share = share / gather_rows(total, jnp.maximum(dest, 0))
    return moved, (x, share, total, dest)


def _move_backward(mean, saved, gradient):
    """Gradients of x and weight: every token reads its slot's gradient."""
    x, share, total, dest = saved
    prefix = x.shape[1] - dest.shape[1]
    front = ((0, 0), (prefix, 0))
    token = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    slot = jnp.pad(jnp.maximum(dest, 0) + prefix, front)
    rows = gather_rows(gradient, jnp.where(token < prefix, token, slot))
    dropped = jnp.pad(dest == DROPPED, front)[:, :, None]
    rows = jnp.where(dropped, 0, rows)
    if share is None:
        return rows, None, None, None, None
    rows = rows.astype(jnp.float32)
    d_share = None
    # With `total`, the weights are sizes, which get no gradient.
    if total is None:
        d_share = jnp.sum(rows * x.astype(jnp.float32), axis=-1)
        d_share = d_share[:, prefix:]
    factor = jnp.pad(share, front, constant_values=1.0)
    d_x = rows * factor[:, :, None]
    return d_x.astype(x.dtype), d_share, None, None, None


_move_by_index.defvjp(_move_forward, _move_backward)


# By one product, in two bytes


def _merge_by_product(x, size, attn_size, result, patches):
    """`merge_tokens` by one matrix product [slots, tokens] that includes the prefix."""
    prefix = x.shape[1] - result.slot_of_token.shape[1]
    front = ((0, 0), (prefix, 0))
    token = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    count = prefix + result.n_out
    # Rows are padded to a multiple of 8 for tensor cores. Otherwise XLA would cut the
    # padded product in one more pass over it.
    slot = jnp.arange(count + -count % 8, dtype=jnp.int32)
    # Prefix tokens get slot numbers below DROPPED, which no image token has.
    slot = jnp.where(slot < prefix, DROPPED - 1 - slot, slot - prefix)
    dest = jnp.where(
        token < prefix, DROPPED - 1 - token, jnp.pad(result.slot_of_token, front)
    )
    belongs = dest[:, None, :] == slot[None, :, None]
    size = jnp.where(belongs, size[:, None, :], 0)
    by_size = result.by_size and result.weight is None
    weight_of_token = 1.0
    if result.weight is not None:
        # The totals are sums of the rounded weights, so every slot is an exact mean.
        rounded = result.weight.astype(x.dtype).astype(jnp.float32)
        weight_of_token = jnp.pad(rounded, front, constant_values=1.0)[:, None, :]
    weight = size if by_size else jnp.where(belongs, weight_of_token, 0.0)
    values = [weight]
    if result.attn_size is not None:
        attn_size = jnp.pad(result.attn_size, front, constant_values=1.0)
    if attn_size is not None:
        values.append(jnp.where(belongs, attn_size[:, None, :], 0))
    # One pass computes all sums per slot, in the kernel that writes the matrix.
    total, *attn_size = (
        slot_sums[:, :count] for slot_sums in sum_arrays(values, axis=2)
    )
    parts = [weight.astype(x.dtype)]
    # Whole numbers up to `exact` fit into the tokens' dtype. A larger size needs two
    # operands: the rounded size and the rest.
    exact = 2 / jnp.finfo(x.dtype).eps
    if by_size and (patches is None or patches > exact):
        rounding = weight - parts[0].astype(jnp.float32)
        parts.append(rounding.astype(x.dtype))
    rows = jnp.einsum(
        "bpsn,bnd->bpsd",
        jnp.stack(parts, axis=1),
        x,
        preferred_element_type=jnp.float32,
    )
    rows = jnp.sum(rows, axis=1)[:, :count] / total[:, :, None]
    rows = rows.astype(x.dtype)
    size = total if by_size else jnp.sum(size, axis=-1)[:, :count]
    tiny = jnp.finfo(jnp.float32).tiny
    attn_size = jnp.maximum(attn_size[0], tiny) if attn_size else None
    return rows, size, attn_size


# Who chooses


def choose_form(x, result):
    """`result` with its index, or without it where a product merges tokens x faster."""
    if result.index is None:
        return result
    absorbed = result.index.absorbed_tokens.shape[1]
    # One product is fast for means of many tokens. For few tokens it pays only where
    # starting kernels takes longer than moving x.
    by_product = absorbed > FEW_ABSORBED or (absorbed > 0 and is_latency_bound(x))
    # Float weights would be rounded to two bytes; sizes and booleans are exact.
    by_product &= result.weight is None or result.weight.dtype == bool
    if is_reference() or (is_fast(x) and result.mean and by_product):
        return result.replace(index=None)
    return result


def merge_tokens(x, size, attn_size, result, patches=None):
    """Merge features, sizes and attention sizes in the form of `choose_form`.

    The arguments are fields of a `TokenState`; `result` may have attention sizes, too.
    """
    if is_fast(x) and result.index is None and result.mean:
        return _merge_by_product(x, size, attn_size, result, patches)
    merged, merged_size = merge_features(x, size, result)
    if attn_size is None and result.attn_size is None:
        return merged, merged_size, None
    prefix = x.shape[1] - result.slot_of_token.shape[1]
    sizes = result.attn_size  # of image tokens
    if sizes is None:
        sizes = attn_size[:, prefix:]
    total = sum_slots(sizes.astype(jnp.float32), result)
    # A slot's tokens may all add 0, but attention takes the logarithm.
    total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    own = size if attn_size is None else attn_size
    return merged, merged_size, jnp.concatenate([own[:, :prefix], total], axis=1)


def least_weight(x):
    """The least weight with which a token of x still counts in a mean of its slot."""
    # Its products with features must not underflow. `_merge_by_product` rounds it.
    least = 1e-30
    if is_fast(x):
        least = max(least, float(jnp.finfo(x.dtype).tiny))
    return least


@onnx_op
def merge_features(x, size, result):
    """Merge features and sizes: [B, prefix + n_out, D], [B, prefix + n_out].

    x, size: [B, prefix + n, D], [B, prefix + n]
    """
    prefix = x.shape[1] - result.slot_of_token.shape[1]
    image_size = size[:, prefix:]
    size_of_slots = sum_slots(image_size, result)
    sizes = jnp.concatenate([size[:, :prefix], size_of_slots], axis=1)
    if result.index is None:
        weight = result.feature_weights(image_size)
        matrix = slot_matrix(weight, result.slot_of_token, result.n_out, result.mean)
        return mix_tokens(x, matrix), sizes
    if result.index.absorbed_tokens.shape[1] and result.weight is None and result.mean:
        # Weights are integers here, so sums per slot suffice. `_slot_shares` would
        # compare all pairs of tokens.
        share = image_size
        total = size_of_slots
        if not result.by_size:
            share = None
            total = sum_slots(jnp.ones_like(image_size), result)
    else:
        share = _slot_shares(result, image_size)
        total = None
    return _move_tokens(x, share, total, result), sizes


def merge_map(weights, result, size):
    """Merge an attention map: rows are averaged like features, columns are summed.

    weights: [B, H, N, N], attention before the merge, or only the prefix rows
    size: [B, n], image token sizes before the merge
    Returns [B, H, N_out, N_out], or only the prefix rows.
    Source: Lee et al. 2024, section 3.3.
    """
    if is_reference():
        result = result.replace(index=None)
    batch, heads, rows, tokens = weights.shape
    by_row = weights.transpose(0, 2, 1, 3)
    by_row = by_row.reshape(batch, rows, -1)
    if rows == tokens:
        by_row = _move_tokens(by_row, _slot_shares(result, size), None, result)
    by_column = by_row.reshape(batch, -1, heads, tokens)
    by_column = by_column.transpose(0, 3, 2, 1)
    by_column = by_column.reshape(batch, tokens, -1)
    ones = jnp.ones(size.shape, jnp.float32)
    by_column = _move_tokens(by_column, ones, None, result.replace(mean=False))
    merged = by_column.reshape(batch, by_column.shape[1], heads, -1)
    return merged.transpose(0, 2, 3, 1)


def _slot_shares(result, size):
    """Token factors in the slot sums, [B, n] float32; None: all factors are 1."""
    no_merges = result.index is not None and not result.index.absorbed_tokens.shape[1]
    if no_merges and result.weight is None and result.mean:
        return None
    weight = result.feature_weights(size)
    if not result.mean:
        return weight
    together = result.slot_of_token[:, :, None] == result.slot_of_token[:, None, :]
    weights_in_slot = jnp.where(together, weight[:, None, :], 0)
    return weight / jnp.sum(weights_in_slot, axis=-1)


def _move_tokens(x, weight, total, result):
    if result.index is not None:
        return _move_by_index(
            x, weight, total, result.index, result.slot_of_token, result.mean
        )
    return mix_tokens(
        x, slot_matrix(weight, result.slot_of_token, result.n_out, mean=False)
    )
