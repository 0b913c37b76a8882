"""The tokens between two blocks, what reducers read of them, and what they return."""

import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array

DROPPED = -1


@struct.dataclass
class TokenState:
    """Tokens between two blocks: first the prefix (class token), then the image."""

    x: Array  # [B, prefix + n, D]
    # [B, prefix + n] float32: number of patches in each token, exact
    size: Array
    # [B, n] float: 1 for live image tokens, 0 for masked ones; None outside of masked
    # training
    mask: Array | None = None
    # [B, n, 2] float32: mean position of a token's patches; None without rotary
    coordinates: Array | None = None
    # [B, prefix + n] float32, positive: for how many tokens proportional attention and
    # pooling by mean count each token; None: as many as its size
    attn_size: Array | None = None
    num_prefix: int = struct.field(pytree_node=False, default=1)
    # number of patches of the image, which no size exceeds; None: not known
    patches: int | None = struct.field(pytree_node=False, default=None)
    # (height, width) of the patches; None after the first reduction
    grid: tuple[int, int] | None = struct.field(pytree_node=False, default=None)

    def image(self, values):
        """Values of the image tokens. [B, prefix + n, ..] -> [B, n, ..]."""
        return values[:, self.num_prefix :]

    def prefix(self, values):
        """Values of the prefix. [B, prefix + n, ..] -> [B, prefix, ..]."""
        return values[:, : self.num_prefix]

    @property
    def effective_size(self):
        """For how many tokens attention and pooling count each, [B, prefix + n].

        That is `attn_size`, or the size where it is None.
        """
        return self.size if self.attn_size is None else self.attn_size

    @property
    def full_mask(self):
        """The mask of all tokens, [B, prefix + n], or None where there is no mask.

        The prefix is always live.
        """
        if self.mask is None:
            return None
        front = ((0, 0), (self.num_prefix, 0))
        return jnp.pad(self.mask, front, constant_values=1)


@struct.dataclass
class ReducerInputs:
    """What a reducer can read of a block: values of its image tokens.

    A field that the reducer's `needs` does not name is None. At site "pre" the fields
    on attention are those of the block before.
    """

    x: Array  # [B, n, D]: the tokens, in the residual stream at the step's site
    size: Array  # [B, n]: number of patches in each token
    attn_size: Array | None = None  # [B, n]: as `TokenState.effective_size`
    # [B, n, d]: the feature to compare: mean over heads of key, query or value; the
    # token itself; or the normed input of attention
    metric: Array | None = None
    key: Array | None = None  # [B, n, d]: mean over heads
    # Fast reductions read x and keys with those of the prefix, [B, prefix + n, ..], as
    # a GPU would copy a part of an array for a product.
    all_x: Array | None = None
    all_keys: Array | None = None
    # [B, n] float32: attention of the class token, mean over heads
    cls_attn: Array | None = None
    # [B, n] float32: attention received, mean over heads and queries
    attn_columns: Array | None = None
    # [B, n] float32: how far attention moves each token, as shares that add up to 1
    shift: Array | None = None
    # [B, n] float32: attention of the head's probe, mean over heads
    probe: Array | None = None
    mask: Array | None = None  # [B, n]: as in TokenState
    # [B] random keys of (seed, step, position in the global batch, block) in training,
    # and of (seed, index in the data set, block) in evaluation
    rng: Array | None = None
    # (height, width) of the patches before the first reduction
    grid: tuple[int, int] | None = struct.field(pytree_node=False, default=None)
    num_prefix: int = struct.field(pytree_node=False, default=1)
    # number of heads of the block's attention
    num_heads: int = struct.field(pytree_node=False, default=1)


@struct.dataclass
class SlotIndex:
    """Which tokens each slot gets, as indices of tokens to gather."""

    keep: Array  # [B, n_out]: the token that each slot keeps
    absorbed: Array  # [B, e]: all other tokens that are not dropped
    target: Array  # [B, e]: the slots that absorb them
    # [B, e]: the tokens that these slots keep; [B, 1] where all join one slot
    partner: Array

    @classmethod
    def one_each(cls, keep):
        """A SlotIndex whose slots have one token each; keep: [B, n_out]."""
        no_tokens = jnp.zeros((keep.shape[0], 0), jnp.int32)
        return cls(keep, no_tokens, no_tokens, no_tokens)

    @property
    def groups(self):
        """The slots of the partners, a slot once for each."""
        return self.target[:, : self.partner.shape[1]]


@struct.dataclass
class Assignment:
    """A hard reduction: every token goes to one slot, or is dropped."""

    dest: Array  # [B, n] int32: the slot of each token, or DROPPED; no slot is empty
    # [B, n]: weights of the features; None: the sizes, or 1 without `by_size`
    weight: Array | None = None
    # [B, n]: what each token adds to its slot's attention size; None: its own one
    attn_size: Array | None = None
    # the same map, with which tokens are gathered; None: a matrix product moves them
    index: SlotIndex | None = None
    n_out: int = struct.field(pytree_node=False, default=0)  # number of slots
    # whether a slot is the weighted mean of its tokens, or else their weighted sum
    mean: bool = struct.field(pytree_node=False, default=True)
    # whether tokens without a `weight` count by their sizes, or else all alike
    by_size: bool = struct.field(pytree_node=False, default=True)

    def weights(self, size):
        """The weights of the features, [B, n] float32; size: [B, n]."""
        if self.weight is not None:
            return self.weight.astype(jnp.float32)
        return size if self.by_size else jnp.ones_like(size)


@struct.dataclass
class Mixing:
    """A soft reduction: every slot is a weighted sum of all tokens."""

    matrix: Array  # [B, n_out, n]
    # [B, n_out]: for how many tokens attention counts each slot; None: for one
    attn_size: Array | None = None


@struct.dataclass
class Masking:
    """A reduction in training that masks tokens for attention and removes none."""

    # [B, n] float: 1 for live tokens and 0 for masked ones, with a straight-through
    # gradient
    keep: Array
    # [B, D]: one more token, which is always live (SPViT's package); None: no such one
    append: Array | None = None


def start(x, num_prefix=1, grid=None, coordinates=None):
    """The TokenState of tokens x [B, prefix + n, D] of one patch each.

    grid: (height, width) of the patches
    coordinates: [n, 2], of the patches; None: the model does not use coordinates
    """
    batch, total = x.shape[:2]
    if coordinates is not None:
        coordinates = jnp.broadcast_to(coordinates, (batch, *coordinates.shape))
    return TokenState(
        x=x,
        size=jnp.ones((batch, total), jnp.float32),
        coordinates=coordinates,
        num_prefix=num_prefix,
        patches=total - num_prefix,
        grid=grid,
    )


def is_in_slot(dest, n_out):
    """Whether each slot gets each token. [B, n] -> [B, n_out, n] bool."""
    dest = dest[:, None, :]
    slots = jnp.arange(n_out, dtype=dest.dtype)
    return dest == slots[None, :, None]
