"""Merging tokens into slots by an Assignment: one product with the slot matrix."""

import functools

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
    # Weights that are tiny in float16 keep their digits, except in fast forms.
    merges_in_two_bytes = x.dtype == jnp.bfloat16 and not choice.uses_reference_forms()
    merges_in_two_bytes |= choice.uses_fast_forms(x)
    if merges_in_two_bytes and assignment.mean and assignment.merges:
        return _merge_two_bytes(x, size, attn_size, assignment, num_patches)

    def sum_sizes(values):
        slot_sums = assignment.sum_slots(values[:, num_prefix:].astype(jnp.float32))
        return jnp.concatenate([values[:, :num_prefix], slot_sums], axis=1)

    only_leave = not assignment.merges and assignment.weight is None
    if choice.uses_reference_forms() or not only_leave:
        rows = mix_tokens(x, assignment.slot_matrix(size[:, num_prefix:]))
    else:  # rows and sizes are those of each slot's single token
        tokens = ranking.invert_order(assignment.slot_of_token, assignment.n_out)
        prefix = jnp.broadcast_to(np.arange(num_prefix), (x.shape[0], num_prefix))
        tokens = jnp.concatenate([prefix, tokens + num_prefix], axis=1)
        rows = ranking.gather_rows(x, tokens, unique=True)
        sum_sizes = functools.partial(ranking.gather_rows, index=tokens)
    if attn_size is not None:
        # A slot's tokens may all add 0, but attention takes the logarithm.
        attn_size = jnp.maximum(sum_sizes(attn_size), jnp.finfo(jnp.float32).tiny)
    return rows, sum_sizes(size), attn_size


def _merge_two_bytes(x, size, attn_size, assignment, num_patches):
    """`merge_tokens` for means of two-byte tokens, prefix included."""
    num_prefix = x.shape[1] - assignment.slot_of_token.shape[1]
    num_slots = num_prefix + assignment.n_out
    removes_few = 0 < x.shape[1] - num_slots <= FEW_MERGED
    removes_few &= choice.uses_fast_forms(x) and not choice.is_latency_bound(x)
    # Rows are padded to a multiple of 8 for tensor cores. Otherwise XLA would cut the
    # padded product in one more pass over it.
    padding = 0 if removes_few else -num_slots % 8
    slots = np.arange(-num_prefix, assignment.n_out + padding, dtype=np.int32)
    slots -= slots < 0  # the prefix gets slots below DROPPED, which no image token has
    prefix_slots = jnp.broadcast_to(slots[:num_prefix], (x.shape[0], num_prefix))
    slot_of_token = jnp.concatenate([prefix_slots, assignment.slot_of_token], axis=1)
    is_member = slot_of_token[:, None, :] == slots[None, :, None]

    def sum_slots(values):
        slot_sums = jnp.sum(jnp.where(is_member, values[:, None, :], 0), axis=2)
        return slot_sums[:, :num_slots]

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
        fits_two_bytes = not by_size or (num_patches or np.inf) <= max_exact
        rows = _mix_by_product(x, is_member, weight, weight_sums, fits_two_bytes)
    if attn_size is not None:
        tiny = jnp.finfo(jnp.float32).tiny
        attn_size = jnp.maximum(sum_slots(attn_size), tiny)
    return rows.astype(x.dtype), merged_size, attn_size


def _mix_by_product(x, is_member, weight, weight_sums, fits_two_bytes):
    """Means of slots by one product."""
    num_slots = weight_sums.shape[1]  # the rows behind are padding
    weight = jnp.where(is_member, weight[:, None, :], 0.0)
    if not fits_two_bytes:  # two operands: the rounded size and the remainder
        rounded_weight = weight.astype(x.dtype)
        remainder = (weight - rounded_weight.astype(jnp.float32)).astype(x.dtype)
        matrix = jnp.stack([rounded_weight, remainder], axis=1)  # [B, 2, slots, N]
        rows = jnp.einsum(
            "bpsn,bnd->bpsd", matrix, x, preferred_element_type=jnp.float32
        )
        rows = jnp.sum(rows, axis=1)[:, :num_slots]
        return rows * (1 / weight_sums)[:, :, None]
    # Sums in two bytes spare a pass in float32. A token alone in its slot keeps its
    # bits, because its weight is 1. Sums of float16 could overflow.
    is_alone = jnp.sum(is_member, axis=2) == 1
    matrix = jnp.where(is_alone[:, :, None], is_member, weight).astype(x.dtype)
    sum_dtype = x.dtype if x.dtype == jnp.bfloat16 else jnp.float32
    rows = jnp.einsum("bsn,bnd->bsd", matrix, x, preferred_element_type=sum_dtype)
    divisor = jnp.where(is_alone[:, :num_slots], 1.0, weight_sums)
    return rows.astype(jnp.float32)[:, :num_slots] * (1 / divisor)[:, :, None]


def _mix_few(x, num_prefix, slot_of_token, is_member, weight, weight_sums):
    """Means of slots, most of which have a single token: rows of x are gathered."""
    # A product would read a copy of x, padded for tensor cores.
    num_tokens = x.shape[1]
    token = jnp.arange(num_tokens, dtype=jnp.int32)[None]

    def join(a, b):  # (first token, whether there are several) of two parts of a slot
        is_several = jnp.maximum(a[0], b[0]) < num_tokens
        return jnp.minimum(a[0], b[0]), a[1] | b[1] | is_several

    # Every slot's first token and whether it has several: one kernel on a GPU, where
    # a minimum and a count are two.
    token_or_end = jnp.where(is_member, token[:, None], num_tokens)
    empty_part = (np.int32(num_tokens), np.bool_(False))
    arrays = (token_or_end, jnp.zeros_like(is_member))
    first_token, is_several = jax.lax.reduce(arrays, empty_part, join, (2,))
    last_token = jnp.max(jnp.where(is_member, token[:, None], -1), axis=2)
    # All other tokens merge, numbered by `token` minus the first tokens before it;
    # the numbers of first tokens are negative.
    is_first = first_token[:, None, :] == token[:, :, None]
    subtrahend = jnp.where(is_first, num_tokens, 0)
    subtrahend = jnp.where(first_token[:, None, :] < token[:, :, None], 1, subtrahend)
    number = token - jnp.sum(subtrahend, axis=2, dtype=jnp.int32)
    merging_token, merging_slot, merging_weight = ranking.pick_by_rank(
        number, num_tokens - first_token.shape[1], token, slot_of_token, weight
    )
    # Slots of merging tokens are means of rows around the row of their first token.
    # Means of dropped tokens are not read.
    slot = jnp.maximum(merging_slot + num_prefix, 0)
    slot_start = ranking.gather_rows(first_token, slot)
    is_same_slot = merging_slot[:, :, None] == merging_slot[:, None, :]
    members = jnp.where(is_same_slot, merging_token[:, None, :], slot_start[:, :, None])
    start_row = ranking.gather_rows(x, slot_start).astype(jnp.float32)
    difference = ranking.gather_rows(x, members) - start_row[:, :, None]
    difference = jnp.sum(difference * merging_weight[:, None, :, None], axis=2)
    slot_weight = ranking.gather_rows(weight_sums, slot)[..., None]
    means = start_row + difference / slot_weight
    last_number = ranking.gather_rows(number, last_token)
    mean = ranking.gather_rows(means.astype(x.dtype), jnp.maximum(last_number, 0))
    row = ranking.gather_rows(x, first_token)
    return jnp.where(is_several[:, :, None], mean, row)
