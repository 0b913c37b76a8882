"""Merging tokens into slots by an Assignment.

By definition, `slot_matrix` mixes all tokens. With a SlotIndex tokens are gathered, and
only slots that absorb tokens are summed. Neither the forward nor the backward pass over
features scatters. In two bytes, one product may merge the prefix and many tokens.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Int32, Num

from imagepiece_jax.common.nodes import onnx_op
from imagepiece_jax.kernels.array_shapes import AllRows, TokenIndices, TokenValues
from imagepiece_jax.kernels.choice import is_fast, is_latency_bound, is_reference
from imagepiece_jax.kernels.ranking import gather_rows, sum_arrays

# The prefix stands before the image tokens, or before the slots.
AllValues = Float[Array, "batch all_tokens"]
SlotValues = Float[Array, "batch slots"]
MergedRows = Float[Array, "batch prefix_and_slots dim"]
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
        no_tokens = jnp.zeros((kept_tokens.shape[0], 0), jnp.int32)
        return cls(kept_tokens, no_tokens, no_tokens, no_tokens)

    @property
    def partner_slots(self) -> Int[Array, "batch groups"]:
        """Slots of the partners, listed once per partner."""
        return self.target_slots[:, : self.partner_tokens.shape[1]]


@struct.dataclass
class Assignment:
    """A hard reduction: every token goes to one slot, or is dropped."""

    # int32 slots, or DROPPED; no slot is empty
    slot_of_token: TokenIndices
    # weights of the features; None: the sizes, or 1 without `by_size`
    weight: Num[Array, "batch tokens"] | Bool[Array, "batch tokens"] | None = None
    # contributions to the slots' attention sizes; None: the tokens' own
    attn_size: TokenValues | None = None
    # the same map as indices for gathering; None: a matrix product moves the tokens
    index: SlotIndex | None = None
    n_out: int = struct.field(pytree_node=False, default=0)  # number of slots
    # True: slots are weighted means of tokens; False: weighted sums
    mean: bool = struct.field(pytree_node=False, default=True)
    # without `weight`: True weighs tokens by size, False equally
    by_size: bool = struct.field(pytree_node=False, default=True)

    def feature_weights(self, size: TokenValues) -> TokenValues:
        """Feature weights, float32."""
        if self.weight is not None:
            return self.weight.astype(jnp.float32)
        return size if self.by_size else jnp.ones_like(size)


def is_in_slot(
    slot_of_token: TokenIndices, n_out: int
) -> Bool[Array, "batch {n_out} tokens"]:
    """Mark the tokens in every slot."""
    slots = jnp.arange(n_out, dtype=slot_of_token.dtype)
    return slot_of_token[:, None, :] == slots[None, :, None]


@onnx_op
def slot_matrix(
    weight: TokenValues, slot_of_token: TokenIndices, n_out: int, mean: bool
) -> Float[Array, "batch {n_out} tokens"]:
    """Token factors in every slot's mean (or sum)."""
    matrix = jnp.where(is_in_slot(slot_of_token, n_out), weight[:, None, :], 0)
    if not mean:
        return matrix
    return matrix / jnp.sum(matrix, axis=-1, keepdims=True)


def mix_tokens(x: AllRows, matrix: Float[Array, "batch slots tokens"]) -> MergedRows:
    """Keep the prefix of x and mix its image tokens by a matrix."""
    num_prefix = x.shape[1] - matrix.shape[2]
    image_tokens = x[:, num_prefix:].astype(jnp.float32)
    mixed_tokens = jnp.einsum("bon,bnd->bod", matrix, image_tokens, precision="highest")
    return jnp.concatenate([x[:, :num_prefix], mixed_tokens.astype(x.dtype)], axis=1)


@onnx_op
def sum_by_slot(
    values: Num[Array, "batch tokens"], slot_of_token: TokenIndices, n_out: int
) -> Num[Array, "batch {n_out}"]:
    """Sum values per slot by comparing slots."""
    terms = jnp.where(is_in_slot(slot_of_token, n_out), values[:, None, :], 0)
    return jnp.sum(terms, axis=-1)


# By a SlotIndex. The handwritten backward pass is another gather. JAX would
# differentiate a gather into a scatter-add, which is slow, and not deterministic on
# GPUs.


def sum_assigned_values(
    values: Num[Array, "batch tokens"], assignment: Assignment
) -> Num[Array, "batch slots"]:
    """Sum the values of the tokens that `assignment` sends to each slot."""
    index = assignment.index
    if index is None:
        return sum_by_slot(values, assignment.slot_of_token, assignment.n_out)
    kept_values = gather_rows(values, index.kept_tokens)
    if not index.absorbed_tokens.shape[1]:
        return kept_values
    absorbed_values = gather_rows(values, index.absorbed_tokens)
    absorbed_sums = sum_by_slot(absorbed_values, index.target_slots, assignment.n_out)
    return kept_values + absorbed_sums


class Factors(NamedTuple):
    """Factors of tokens in their slots' sums."""

    weight: TokenValues | None  # None: all weights are 1
    divisor: SlotValues | None = None  # of the weighted sums; None: 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _move_by_index(
    x: AllRows,
    factors: Factors,
    index: SlotIndex,
    slot_of_token: TokenIndices,
    mean: bool,
) -> MergedRows:
    """Move tokens to their slots, in one pass over x.

    mean: whether slots hold means; a token alone in its slot then stays unchanged
    """
    # A slot with one token reads a row of x. A slot that absorbs tokens reads a row
    # of `group_sums`, a small array.
    num_prefix = x.shape[1] - slot_of_token.shape[1]
    slot = jnp.arange(num_prefix + index.kept_tokens.shape[1], dtype=jnp.int32)[None]
    padding = ((0, 0), (num_prefix, 0))
    is_prefix = slot < num_prefix
    row = jnp.where(is_prefix, slot, jnp.pad(index.kept_tokens + num_prefix, padding))
    single_rows = gather_rows(x, row)
    if factors.weight is not None and not mean:
        factor = gather_rows(factors.weight, index.kept_tokens)
        factor = jnp.pad(factor, padding, constant_values=1.0)
        single_rows = single_rows.astype(jnp.float32) * factor[:, :, None]
        single_rows = single_rows.astype(x.dtype)
    is_plain = factors.weight is None and factors.divisor is None
    if is_plain or not index.absorbed_tokens.shape[1]:
        return single_rows
    group_sums = _sum_groups(x, factors, index, num_prefix)
    is_group = is_in_slot(index.partner_slots, index.kept_tokens.shape[1])
    groups = jnp.arange(group_sums.shape[1], dtype=jnp.int32)[None, None, :]
    group, has_group = _reduce_max_and_any(jnp.where(is_group, groups, 0), is_group)
    merged_rows = gather_rows(group_sums.astype(x.dtype), jnp.pad(group, padding))
    has_group = jnp.pad(has_group, padding)
    return jnp.where(has_group[:, :, None], merged_rows, single_rows)


def _sum_groups(
    x: AllRows, factors: Factors, index: SlotIndex, num_prefix: int
) -> Float[Array, "batch groups dim"]:
    """Weighted token sums per group, in float32."""
    absorbs = index.partner_slots[:, :, None] == index.target_slots[:, None, :]
    # Up to FEW_ABSORBED tokens are gathered for every group and summed: a product
    # would need copies. For more tokens the product is cheaper, because the sums grow
    # with the square of the token count.
    if index.absorbed_tokens.shape[1] > FEW_ABSORBED:
        return _sum_groups_by_product(x, factors, index, num_prefix, absorbs)
    absorbed_tokens = jnp.where(absorbs, index.absorbed_tokens[:, None, :], 0)
    tokens = [index.partner_tokens[:, :, None], absorbed_tokens]
    tokens = jnp.concatenate(tokens, axis=2)
    is_member = jnp.pad(absorbs, ((0, 0), (0, 0), (1, 0)), constant_values=True)
    factor = jnp.where(is_member, _gather_weights(factors.weight, tokens), 0)
    if factors.divisor is not None:
        factor = factor / gather_rows(factors.divisor, index.partner_slots)[:, :, None]
    rows = gather_rows(x, tokens + num_prefix).astype(jnp.float32)
    return jnp.sum(rows * factor[..., None], axis=2)


def _sum_groups_by_product(
    x: AllRows,
    factors: Factors,
    index: SlotIndex,
    num_prefix: int,
    absorbs: Bool[Array, "batch groups absorbed"],
) -> Float[Array, "batch groups dim"]:
    """`_sum_groups` by a matrix product."""
    weight, divisor = factors
    partner_tokens = index.partner_tokens
    absorbed_tokens = index.absorbed_tokens
    partner_factor = _gather_weights(weight, partner_tokens)[:, :, None]
    factor = jnp.where(absorbs, _gather_weights(weight, absorbed_tokens)[:, None, :], 0)
    if divisor is not None:
        group_divisor = gather_rows(divisor, index.partner_slots)[:, :, None]
        partner_factor = partner_factor / group_divisor
        factor = factor / group_divisor
    absorbed_rows = gather_rows(x, absorbed_tokens + num_prefix).astype(jnp.float32)
    absorbed_sums = jnp.einsum(
        "bme,bed->bmd", factor, absorbed_rows, precision="highest"
    )
    partner_rows = gather_rows(x, partner_tokens + num_prefix).astype(jnp.float32)
    return absorbed_sums + partner_factor * partner_rows


def _gather_weights(
    weight: TokenValues | None, tokens: Int[Array, "batch ..."]
) -> Float[Array, "batch ..."]:
    if weight is None:
        return jnp.ones(tokens.shape, jnp.float32)
    return gather_rows(weight, tokens)


def _reduce_max_and_any(
    values: Int32[Array, "batch slots groups"], flags: Bool[Array, "batch slots groups"]
) -> tuple[Int32[Array, "batch slots"], Bool[Array, "batch slots"]]:
    """Reduce int32 values >= 0 by max and flags by any, along the last axis, at once.

    Returns (largest value, whether any flag is True).
    """

    def join(a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
        return jnp.maximum(a[0], b[0]), a[1] | b[1]

    start = (jnp.int32(0), jnp.bool_(False))
    return jax.lax.reduce((values, flags), start, join, (values.ndim - 1,))


def _move_forward(
    x: AllRows,
    factors: Factors,
    index: SlotIndex,
    slot_of_token: TokenIndices,
    mean: bool,
) -> tuple[MergedRows, tuple[Any, ...]]:
    """Move tokens: (rows, the residuals of `_move_backward`)."""
    merged_rows = _move_by_index(x, factors, index, slot_of_token, mean)
    weight, divisor = factors
    share = weight
    if divisor is not None:
        share = 1.0 if weight is None else weight
        share = share / gather_rows(divisor, jnp.maximum(slot_of_token, 0))
    return merged_rows, (x, share, divisor, slot_of_token)


def _move_backward(
    mean: bool, residuals: tuple[Any, ...], gradient: MergedRows
) -> tuple[Any, ...]:
    """Gradients of x and weight: every token reads its slot's gradient.

    mean: only the forward pass uses it
    residuals: from `_move_forward`
    """
    x, share, divisor, slot_of_token = residuals
    num_prefix = x.shape[1] - slot_of_token.shape[1]
    padding = ((0, 0), (num_prefix, 0))
    token = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    slot = jnp.pad(jnp.maximum(slot_of_token, 0) + num_prefix, padding)
    rows = gather_rows(gradient, jnp.where(token < num_prefix, token, slot))
    is_dropped = jnp.pad(slot_of_token == DROPPED, padding)[:, :, None]
    rows = jnp.where(is_dropped, 0, rows)
    if share is None:
        return rows, None, None, None
    rows = rows.astype(jnp.float32)
    d_share = None
    # With `divisor`, the weights are sizes, which get no gradient.
    if divisor is None:
        d_share = jnp.sum(rows * x.astype(jnp.float32), axis=-1)
        d_share = d_share[:, num_prefix:]
    factor = jnp.pad(share, padding, constant_values=1.0)
    d_x = rows * factor[:, :, None]
    return d_x.astype(x.dtype), Factors(d_share), None, None


_move_by_index.defvjp(_move_forward, _move_backward)


# By one product, in two bytes


def _merge_by_product(
    x: AllRows,
    size: AllValues,
    attn_size: AllValues | None,
    assignment: Assignment,
    num_patches: int | None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """`merge_tokens` by one matrix product [slots, tokens] that includes the prefix."""
    num_prefix = x.shape[1] - assignment.slot_of_token.shape[1]
    padding = ((0, 0), (num_prefix, 0))
    token = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    num_slots = num_prefix + assignment.n_out
    # Rows are padded to a multiple of 8 for tensor cores. Otherwise XLA would cut the
    # padded product in one more pass over it.
    slot = jnp.arange(num_slots + -num_slots % 8, dtype=jnp.int32)
    # Prefix tokens get slot numbers below DROPPED, which no image token has.
    slot = jnp.where(slot < num_prefix, DROPPED - 1 - slot, slot - num_prefix)
    slot_of_token = jnp.pad(assignment.slot_of_token, padding)
    slot_of_token = jnp.where(token < num_prefix, DROPPED - 1 - token, slot_of_token)
    is_member = slot_of_token[:, None, :] == slot[None, :, None]
    member_sizes = jnp.where(is_member, size[:, None, :], 0)
    by_size = assignment.by_size and assignment.weight is None
    token_weight = 1.0
    if assignment.weight is not None:
        # `weight_sums` are of the rounded weights, so every slot is an exact mean.
        rounded_weight = assignment.weight.astype(x.dtype).astype(jnp.float32)
        token_weight = jnp.pad(rounded_weight, padding, constant_values=1.0)[:, None, :]
    weight = member_sizes
    if not by_size:
        weight = jnp.where(is_member, token_weight, 0.0)
    summands = [weight]
    if assignment.attn_size is not None:
        attn_size = jnp.pad(assignment.attn_size, padding, constant_values=1.0)
    if attn_size is not None:
        summands.append(jnp.where(is_member, attn_size[:, None, :], 0))
    # One pass computes all sums per slot, in the kernel that writes the matrix.
    slot_sums = [sums[:, :num_slots] for sums in sum_arrays(summands, axis=2)]
    weight_sums = slot_sums[0]
    operands = [weight.astype(x.dtype)]
    # Whole numbers up to `max_exact` fit into the tokens' dtype. A larger size needs
    # two operands: the rounded size and the remainder.
    max_exact = 2 / jnp.finfo(x.dtype).eps
    if by_size and (num_patches is None or num_patches > max_exact):
        remainder = weight - operands[0].astype(jnp.float32)
        operands.append(remainder.astype(x.dtype))
    matrix = jnp.stack(operands, axis=1)  # [B, 1 or 2, slots, N]
    rows = jnp.einsum("bpsn,bnd->bpsd", matrix, x, preferred_element_type=jnp.float32)
    rows = jnp.sum(rows, axis=1)[:, :num_slots] / weight_sums[:, :, None]
    rows = rows.astype(x.dtype)
    merged_size = weight_sums
    if not by_size:
        merged_size = jnp.sum(member_sizes, axis=-1)[:, :num_slots]
    tiny = jnp.finfo(jnp.float32).tiny
    if attn_size is None:
        return rows, merged_size, None
    return rows, merged_size, jnp.maximum(slot_sums[1], tiny)


# Who chooses


def choose_form(x: Float[Array, "..."], assignment: Assignment) -> Assignment:
    """Remove the assignment's index where a product merges tokens x faster."""
    if assignment.index is None:
        return assignment
    num_absorbed = assignment.index.absorbed_tokens.shape[1]
    # One product is fast for means of many tokens. For few tokens it pays only where
    # starting kernels takes longer than moving x.
    is_product_faster = num_absorbed > FEW_ABSORBED or (
        num_absorbed > 0 and is_latency_bound(x)
    )
    # Float weights would be rounded to two bytes; sizes and booleans are exact.
    is_product_faster &= assignment.weight is None or assignment.weight.dtype == bool
    if is_reference() or (is_fast(x) and assignment.mean and is_product_faster):
        return dataclasses.replace(assignment, index=None)
    return assignment


def merge_tokens(
    x: AllRows,
    size: AllValues,
    attn_size: AllValues | None,
    assignment: Assignment,
    num_patches: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Merge features, sizes and attention sizes in the form of `choose_form`.

    The arguments are fields of a TokenState; `assignment` may have attention sizes.
    """
    if is_fast(x) and assignment.index is None and assignment.mean:
        return _merge_by_product(x, size, attn_size, assignment, num_patches)
    merged_x, merged_size = merge_features(x, size, assignment)
    if attn_size is None and assignment.attn_size is None:
        return merged_x, merged_size, None
    num_prefix = x.shape[1] - assignment.slot_of_token.shape[1]
    image_attn_size = assignment.attn_size
    if attn_size is None:
        attn_size = size
    if image_attn_size is None:
        image_attn_size = attn_size[:, num_prefix:]
    slot_attn_size = sum_assigned_values(
        image_attn_size.astype(jnp.float32), assignment
    )
    # A slot's tokens may all add 0, but attention takes the logarithm.
    slot_attn_size = jnp.maximum(slot_attn_size, jnp.finfo(jnp.float32).tiny)
    merged_attn_size = [attn_size[:, :num_prefix], slot_attn_size]
    return merged_x, merged_size, jnp.concatenate(merged_attn_size, axis=1)


def least_weight(x: Float[Array, "..."]) -> float:
    """The least weight with which a token of x still counts in a mean of its slot."""
    # Its products with features must not underflow. `_merge_by_product` rounds it.
    tiny = float(jnp.finfo(x.dtype).tiny) if is_fast(x) else 0.0
    return max(1e-30, tiny)


@onnx_op
def merge_features(
    x: AllRows, size: AllValues, assignment: Assignment
) -> tuple[MergedRows, Float[Array, "batch prefix_and_slots"]]:
    """Merge features and sizes."""
    num_prefix = x.shape[1] - assignment.slot_of_token.shape[1]
    image_size = size[:, num_prefix:]
    slot_sizes = sum_assigned_values(image_size, assignment)
    merged_size = jnp.concatenate([size[:, :num_prefix], slot_sizes], axis=1)
    if assignment.index is None:
        weight = assignment.feature_weights(image_size)
        slot_of_token = assignment.slot_of_token
        matrix = slot_matrix(weight, slot_of_token, assignment.n_out, assignment.mean)
        return mix_tokens(x, matrix), merged_size
    has_merges = assignment.index.absorbed_tokens.shape[1] > 0
    if has_merges and assignment.weight is None and assignment.mean:
        # Weights are integers here, so sums per slot suffice. `_slot_shares` would
        # compare all pairs of tokens.
        factors = Factors(image_size, slot_sizes)
        if not assignment.by_size:
            token_counts = sum_assigned_values(jnp.ones_like(image_size), assignment)
            factors = Factors(None, token_counts)
    else:
        factors = Factors(_slot_shares(assignment, image_size))
    return _move_tokens(x, factors, assignment), merged_size


def merge_map(
    attention: Float[Array, "batch heads queries all_tokens"],
    assignment: Assignment,
    size: TokenValues,
) -> Float[Array, "batch heads merged_queries prefix_and_slots"]:
    """Merge an attention map: rows are averaged like features, columns are summed.

    attention: before the merge, of all tokens or of the prefix alone
    size: of image tokens before the merge
    Source: Lee et al. 2024, section 3.3.
    """
    if is_reference():
        assignment = dataclasses.replace(assignment, index=None)
    batch, num_heads, num_queries, num_tokens = attention.shape
    rows = attention.transpose(0, 2, 1, 3).reshape(batch, num_queries, -1)
    if num_queries == num_tokens:
        shares = Factors(_slot_shares(assignment, size))
        rows = _move_tokens(rows, shares, assignment)
    columns = rows.reshape(batch, -1, num_heads, num_tokens)
    columns = columns.transpose(0, 3, 2, 1).reshape(batch, num_tokens, -1)
    ones = Factors(jnp.ones(size.shape, jnp.float32))
    columns = _move_tokens(columns, ones, dataclasses.replace(assignment, mean=False))
    merged_map = columns.reshape(batch, columns.shape[1], num_heads, -1)
    return merged_map.transpose(0, 2, 3, 1)


def _slot_shares(assignment: Assignment, size: TokenValues) -> TokenValues | None:
    """Token factors in the slot sums; None: all factors are 1."""
    has_no_merges = (
        assignment.index is not None and not assignment.index.absorbed_tokens.shape[1]
    )
    if has_no_merges and assignment.weight is None and assignment.mean:
        return None
    weight = assignment.feature_weights(size)
    if not assignment.mean:
        return weight
    slot = assignment.slot_of_token
    is_same_slot = slot[:, :, None] == slot[:, None, :]
    weights_in_slot = jnp.where(is_same_slot, weight[:, None, :], 0)
    return weight / jnp.sum(weights_in_slot, axis=-1)


def _move_tokens(x: AllRows, factors: Factors, assignment: Assignment) -> MergedRows:
    slot_of_token = assignment.slot_of_token
    index = assignment.index
    if index is not None:
        return _move_by_index(x, factors, index, slot_of_token, assignment.mean)
    matrix = slot_matrix(factors.weight, slot_of_token, assignment.n_out, mean=False)
    return mix_tokens(x, matrix)
