"""Merging tokens into slots by an Assignment: one product with the slot matrix."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Num

from imagepiece_jax.kernels import choice, ranking
from imagepiece_jax.kernels.array_shapes import AllRows, TokenIndices, TokenValues

# The prefix stands before the image tokens, or before the slots.
AllValues = Float[Array, "batch all_tokens"]
MergedRows = Float[Array, "batch prefix_and_slots dim"]
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
        if weight is None:
            weight = size if self.by_size and self.merges else jnp.ones_like(size)
        is_member = is_in_slot(self.slot_of_token, self.n_out)
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

    The arguments are fields of a TokenState; `assignment` may have attention sizes.
    """
    num_prefix = x.shape[1] - assignment.slot_of_token.shape[1]
    if assignment.attn_size is not None:
        prefix_size = (size if attn_size is None else attn_size)[:, :num_prefix]
        attn_size = jnp.concatenate([prefix_size, assignment.attn_size], axis=1)
    if choice.is_fast(x) and assignment.mean and assignment.merges:
        return _merge_by_product(x, size, attn_size, assignment, num_patches)

    def sum_sizes(values):
        slot_sums = assignment.sum_slots(values[:, num_prefix:].astype(jnp.float32))
        return jnp.concatenate([values[:, :num_prefix], slot_sums], axis=1)

    if assignment.merges or assignment.weight is not None or choice.is_reference():
        rows = mix_tokens(x, assignment.slot_matrix(size[:, num_prefix:]))
    else:
        kept = ranking.invert_order(assignment.slot_of_token, assignment.n_out)
        prefix = jnp.broadcast_to(np.arange(num_prefix), (kept.shape[0], num_prefix))
        kept = jnp.concatenate([prefix, kept + num_prefix], axis=1)
        rows = ranking.gather_rows(x, kept, unique=True)
    if attn_size is not None:
        # A slot's tokens may all add 0, but attention takes the logarithm.
        attn_size = jnp.maximum(sum_sizes(attn_size), jnp.finfo(jnp.float32).tiny)
    return rows, sum_sizes(size), attn_size


def _merge_by_product(x, size, attn_size, assignment, num_patches):
    """`merge_tokens` in two bytes, by one product that includes the prefix."""
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
    weight = member_sizes
    if not by_size:
        token_weight = 1.0
        if assignment.weight is not None:
            # Every slot is an exact mean by the rounded weights, which do not vanish.
            rounded_weight = assignment.weight.astype(x.dtype)
            if assignment.weight.dtype != bool:
                rounded_weight = jnp.maximum(rounded_weight, jnp.finfo(x.dtype).tiny)
            rounded_weight = rounded_weight.astype(jnp.float32)
            token_weight = jnp.pad(rounded_weight, padding, constant_values=1.0)
            token_weight = token_weight[:, None, :]
        weight = jnp.where(is_member, token_weight, 0.0)
    weight_sums = jnp.sum(weight, axis=2)
    # Whole numbers up to `max_exact` fit into the tokens' dtype. A larger size needs
    # two operands: the rounded size and the remainder.
    max_exact = 2 / jnp.finfo(x.dtype).eps
    if by_size and (num_patches is None or num_patches > max_exact):
        rounded_weight = weight.astype(x.dtype)
        remainder = (weight - rounded_weight.astype(jnp.float32)).astype(x.dtype)
        matrix = jnp.stack([rounded_weight, remainder], axis=1)  # [B, 2, slots, N]
        rows = jnp.einsum(
            "bpsn,bnd->bpsd", matrix, x, preferred_element_type=jnp.float32
        )
        rows = jnp.sum(rows, axis=1)
        divisor = weight_sums
    else:
        # Sums in two bytes spare a pass in float32. A token alone in its slot keeps its
        # bits, because its weight is 1. Sums of float16 could overflow.
        is_alone = jnp.sum(is_member, axis=2) == 1
        matrix = jnp.where(is_alone[:, :, None], is_member, weight).astype(x.dtype)
        divisor = jnp.where(is_alone, 1.0, weight_sums)
        sum_dtype = x.dtype if x.dtype == jnp.bfloat16 else jnp.float32
        rows = jnp.einsum("bsn,bnd->bsd", matrix, x, preferred_element_type=sum_dtype)
        rows = rows.astype(jnp.float32)
    rows = rows[:, :num_slots] * (1 / divisor[:, :num_slots])[:, :, None]
    weight_sums = weight_sums[:, :num_slots]
    merged_size = weight_sums
    if not by_size:
        merged_size = jnp.sum(member_sizes, axis=-1)[:, :num_slots]
    if attn_size is not None:
        attn_size = jnp.sum(jnp.where(is_member, attn_size[:, None, :], 0), axis=2)
        tiny = jnp.finfo(jnp.float32).tiny
        attn_size = jnp.maximum(attn_size[:, :num_slots], tiny)
    return rows.astype(x.dtype), merged_size, attn_size
