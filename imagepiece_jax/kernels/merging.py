"""Merging tokens into slots by an Assignment: one product with the slot matrix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Num

from imagepiece_jax.kernels import forms, ranking
from imagepiece_jax.kernels.array_shapes import AllRows, TokenIndices, TokenValues

# The prefix stands before the image tokens, or before the slots.
AllValues = Float[Array, "batch all_tokens"]
MergedRows = Float[Array, "batch prefix_and_slots dim"]
FEW_MERGED = 24  # up to this many tokens merge without a product
DROPPED = -1  # instead of a slot, for a dropped token
LEAST_WEIGHT = 1e-30  # with which a token still counts in a mean of its slot


@struct.dataclass
class Assignment:
    """A hard reduction: every token goes to one slot, or is dropped."""

    # int32 slots, or DROPPED; no slot is empty
    slot_of_token: TokenIndices
    # weights of the features; None: the sizes, or 1 without `by_size`
    weight: Num[Array, "batch tokens"] | Bool[Array, "batch tokens"] | None = None
    # contributions to the slots' attention sizes; None: the tokens' own
    attn_size: TokenValues | None = None
    n_out: int = struct.field(pytree_node=False, default=0)  # number of slots
    # True: slots are weighted means of tokens; False: weighted sums
    mean: bool = struct.field(pytree_node=False, default=True)
    # without `weight`: True weighs tokens by size, False equally
    by_size: bool = struct.field(pytree_node=False, default=True)
    # False: every slot has a single token, so tokens only leave
    merges: bool = struct.field(pytree_node=False, default=True)

    def slot_matrix(self, size: TokenValues) -> Float[Array, "batch slots tokens"]:
        """Token factors in every slot's mean (or sum), float32."""
        weight = self.weight
        # A token alone in its slot keeps its features, of any size.
        if weight is None:
            weight = size if self.by_size and self.merges else jnp.ones_like(size)
        is_member = is_in_slot(self.slot_of_token, self.n_out)  # [batch, slots, tokens]
        matrix = jnp.where(is_member, weight[:, None, :].astype(jnp.float32), 0)
        if not (self.mean and self.merges):
            return matrix
        return matrix / jnp.sum(matrix, axis=-1, keepdims=True)

    def sum_slots(self, values: TokenValues) -> Float[Array, "batch slots"]:
        """Sum values per slot."""
        is_member = is_in_slot(self.slot_of_token, self.n_out)
        return jnp.sum(jnp.where(is_member, values[:, None, :], 0), axis=-1)


def is_in_slot(
    slot_of_token: TokenIndices, n_out: int
) -> Bool[Array, "batch {n_out} tokens"]:
    """Mark the tokens in every slot."""
    slots = jnp.arange(n_out, dtype=slot_of_token.dtype)
    return slot_of_token[:, None, :] == slots[None, :, None]


def mix_tokens(x: AllRows, matrix: Float[Array, "batch slots tokens"]) -> MergedRows:
    """Keep the prefix of x and mix its image tokens by a matrix."""
    num_prefix = x.shape[1] - matrix.shape[2]
    image_tokens = x[:, num_prefix:].astype(jnp.float32)
    mixed_tokens = jnp.einsum("bon,bnd->bod", matrix, image_tokens, precision="highest")
    return jnp.concatenate([x[:, :num_prefix], mixed_tokens.astype(x.dtype)], axis=1)


def merge_tokens(
    x: AllRows,
    size: AllValues,
    attn_size: AllValues | None,
    assignment: Assignment,
    num_patches: int | None = None,
) -> tuple[MergedRows, jax.Array, jax.Array | None]:
    """Merge features, sizes and attention sizes.

    The arguments are fields of a TokenState, where `patches` is num_patches;
    `assignment` may have attention sizes.
    """
    num_prefix = x.shape[1] - assignment.slot_of_token.shape[1]
    if assignment.attn_size is not None:
        prefix_size = (size if attn_size is None else attn_size)[:, :num_prefix]
        attn_size = jnp.concatenate([prefix_size, assignment.attn_size], axis=1)
    # Weights that are tiny in float16 keep their digits, except in fast forms.
    merges_in_two_bytes = x.dtype == jnp.bfloat16 and not forms.uses_reference_forms()
    merges_in_two_bytes |= forms.uses_fast_forms(x)
    if merges_in_two_bytes and assignment.mean and assignment.merges:
        return _merge_two_bytes(x, size, attn_size, assignment, num_patches)
    only_leave = not assignment.merges and assignment.weight is None
    if forms.uses_reference_forms() or not only_leave:
        rows = mix_tokens(x, assignment.slot_matrix(size[:, num_prefix:]))

        def sum_sizes(values):
            slot_sums = assignment.sum_slots(values[:, num_prefix:].astype(jnp.float32))
            return jnp.concatenate([values[:, :num_prefix], slot_sums], axis=1)

    else:  # rows and sizes are those of each slot's single token
        token_of_slot = ranking.invert_order(assignment.slot_of_token, assignment.n_out)
        prefix = jnp.broadcast_to(np.arange(num_prefix), (x.shape[0], num_prefix))
        kept_rows = jnp.concatenate([prefix, token_of_slot + num_prefix], axis=1)
        rows = ranking.gather_rows(x, kept_rows, unique=True)
        sum_sizes = functools.partial(ranking.gather_rows, index=kept_rows)
    if attn_size is not None:
        # A slot's tokens may all add 0, but attention takes the logarithm.
        attn_size = jnp.maximum(sum_sizes(attn_size), jnp.finfo(jnp.float32).tiny)
    return rows, sum_sizes(size), attn_size


def _merge_two_bytes(x, size, attn_size, assignment, num_patches):
    """`merge_tokens` for means of two-byte tokens, with slots for the prefix, too.

    size, attn_size: [batch, all_tokens]
    """
    num_prefix = x.shape[1] - assignment.slot_of_token.shape[1]
    num_slots = num_prefix + assignment.n_out
    removes_few = 0 < x.shape[1] - num_slots <= FEW_MERGED
    removes_few &= forms.uses_fast_forms(x) and not forms.is_latency_bound(x)
    # Rows are padded to a multiple of 8 for tensor cores. Otherwise XLA would cut the
    # padded product in one more pass over it.
    padding = 0 if removes_few else -num_slots % 8
    slots = np.arange(-num_prefix, assignment.n_out + padding, dtype=np.int32)
    slots -= slots < 0  # the prefix gets slots below DROPPED, which no image token has
    prefix_slots = jnp.broadcast_to(slots[:num_prefix], (x.shape[0], num_prefix))
    slot_of_token = jnp.concatenate([prefix_slots, assignment.slot_of_token], axis=1)
    is_member = slot_of_token[:, None, :] == slots[None, :, None]  # [B, slots, N]

    def sum_slots(values):
        padded_sums = jnp.sum(jnp.where(is_member, values[:, None, :], 0), axis=2)
        return padded_sums[:, :num_slots]

    merged_size = sum_slots(size)
    weight, weight_sums = size, merged_size
    by_size = assignment.by_size and assignment.weight is None
    if not by_size:
        weight = jnp.ones_like(size)
        if assignment.weight is not None:
            # Every slot is an exact mean by the rounded weights, which do not vanish.
            weight = assignment.weight.astype(x.dtype)
            if assignment.weight.dtype != bool:
                least_weight = max(float(jnp.finfo(x.dtype).tiny), LEAST_WEIGHT)
                weight = jnp.maximum(weight, least_weight)
            weight = weight.astype(jnp.float32)
            weight = jnp.pad(weight, ((0, 0), (num_prefix, 0)), constant_values=1.0)
        weight_sums = sum_slots(weight)
    if removes_few:
        rows = _mix_few(x, num_prefix, slot_of_token, is_member, weight, weight_sums)
    else:
        # Whole numbers up to this one fit into the tokens' dtype.
        max_exact = 2 / jnp.finfo(x.dtype).eps
        # A size is at most `num_patches`; None: not known, so a size may be larger.
        fits_two_bytes = not by_size or (num_patches or np.inf) <= max_exact
        rows = _mix_by_product(x, is_member, weight, weight_sums, fits_two_bytes)
    if attn_size is not None:
        tiny = jnp.finfo(jnp.float32).tiny
        attn_size = jnp.maximum(sum_slots(attn_size), tiny)
    return rows.astype(x.dtype), merged_size, attn_size


def _mix_by_product(x, is_member, weight, weight_sums, fits_two_bytes):
    """Means of slots by one product.

    x: [batch, tokens, dim]
    is_member: [batch, padded_slots, tokens]
    weight, weight_sums: [batch, tokens] and [batch, slots]
    """
    num_slots = weight_sums.shape[1]  # the rows behind are padding
    slot_weight = jnp.where(is_member, weight[:, None, :], 0.0)
    if not fits_two_bytes:  # two operands: the rounded size and the remainder
        rounded_weight = slot_weight.astype(x.dtype)
        remainder = (slot_weight - rounded_weight.astype(jnp.float32)).astype(x.dtype)
        matrices = jnp.stack([rounded_weight, remainder], axis=1)  # [B, 2, slots, N]
        products = jnp.einsum(
            "bpsn,bnd->bpsd", matrices, x, preferred_element_type=jnp.float32
        )
        sums = jnp.sum(products, axis=1)[:, :num_slots]
        return sums * (1 / weight_sums)[:, :, None]
    # Sums in two bytes spare a pass in float32. A token alone in its slot keeps its
    # bits, because its weight is 1. Sums of float16 could overflow.
    is_alone = jnp.sum(is_member, axis=2) == 1
    matrix = jnp.where(is_alone[:, :, None], is_member, slot_weight).astype(x.dtype)
    sum_dtype = x.dtype if x.dtype == jnp.bfloat16 else jnp.float32
    sums = jnp.einsum("bsn,bnd->bsd", matrix, x, preferred_element_type=sum_dtype)
    divisor = jnp.where(is_alone[:, :num_slots], 1.0, weight_sums)
    return sums.astype(jnp.float32)[:, :num_slots] * (1 / divisor)[:, :, None]


def _mix_few(x, num_prefix, slot_of_token, is_member, weight, weight_sums):
    """Means of slots, most of which have a single token: rows of x are gathered.

    x: [batch, tokens, dim]
    is_member: [batch, slots, tokens]
    weight, weight_sums: [batch, tokens] and [batch, slots]
    """
    # A product would read a copy of x, padded for tensor cores.
    num_tokens = x.shape[1]
    token = jnp.arange(num_tokens, dtype=jnp.int32)[None]
    first_token, is_several = _find_first_members(token, is_member)
    last_token = jnp.max(jnp.where(is_member, token[:, None], -1), axis=2)
    merge_number = _number_merging_tokens(token, first_token)
    num_merging = num_tokens - first_token.shape[1]
    merging_token, merging_slot, merging_weight = ranking.pick_by_rank(
        merge_number, num_merging, token, slot_of_token, weight
    )
    # Slots of merging tokens are means of rows around the row of their first token.
    # Means of dropped tokens are not read.
    slot_index = jnp.maximum(merging_slot + num_prefix, 0)  # [batch, merging]
    start_token = ranking.gather_rows(first_token, slot_index)
    is_same_slot = merging_slot[:, :, None] == merging_slot[:, None, :]
    # [batch, merging, merging]; a start token stands for those of other slots.
    slot_tokens = jnp.where(
        is_same_slot, merging_token[:, None, :], start_token[:, :, None]
    )
    start_row = ranking.gather_rows(x, start_token).astype(jnp.float32)
    difference = ranking.gather_rows(x, slot_tokens) - start_row[:, :, None]
    weighted_difference = jnp.sum(difference * merging_weight[:, None, :, None], axis=2)
    slot_weight = ranking.gather_rows(weight_sums, slot_index)[..., None]
    merging_means = start_row + weighted_difference / slot_weight
    last_number = ranking.gather_rows(merge_number, last_token)  # -: a single token
    slot_means = ranking.gather_rows(
        merging_means.astype(x.dtype), jnp.maximum(last_number, 0)
    )
    first_rows = ranking.gather_rows(x, first_token)
    return jnp.where(is_several[:, :, None], slot_means, first_rows)


def _find_first_members(token, is_member):
    """(first token, whether there are several) of every slot: [batch, slots] both.

    token: 0, 1, .. as [1, tokens]
    """
    num_tokens = is_member.shape[2]

    def join(left, right):  # two parts of a slot; num_tokens: no token in the part
        is_in_both = jnp.maximum(left[0], right[0]) < num_tokens
        return jnp.minimum(left[0], right[0]), left[1] | right[1] | is_in_both

    # This is one kernel on a GPU, where a minimum and a count are two.
    token_or_end = jnp.where(is_member, token[:, None], num_tokens)
    empty_part = (np.int32(num_tokens), np.bool_(False))
    single_parts = (token_or_end, jnp.zeros_like(is_member))
    return jax.lax.reduce(single_parts, empty_part, join, (2,))


def _number_merging_tokens(token, first_token):
    """Number tokens that are no slot's first from 0; first tokens get less than 0."""
    # A merging token's number is `token` minus the count of first tokens before it.
    is_first = first_token[:, None, :] == token[:, :, None]  # [batch, tokens, slots]
    subtrahend = jnp.where(is_first, token.shape[1], 0)
    subtrahend = jnp.where(first_token[:, None, :] < token[:, :, None], 1, subtrahend)
    return token - jnp.sum(subtrahend, axis=2, dtype=jnp.int32)
