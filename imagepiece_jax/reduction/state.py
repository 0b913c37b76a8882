"""Data classes: tokens between blocks, inputs of reducers, and results of reducers."""

import jax
import jax.numpy as jnp
from flax import struct

from imagepiece_jax.kernels.merging import SlotIndex

Array = jax.Array


@struct.dataclass
class TokenState:
    """Tokens between two blocks: first the prefix (class token), then the image."""

    x: Array  # [B, prefix + n, D]
    # [B, prefix + n] float32: patches per token, exact
    size: Array
    # [B, n] float: 1 for live image tokens, 0 for masked; None outside masked training
    mask: Array | None = None
    # [B, n, 2] float32: mean position of a token's patches; None without rotary
    coordinates: Array | None = None
    # [B, prefix + n] float32, positive: token weights in proportional attention and
    # mean pooling; None: the sizes
    attn_size: Array | None = None
    num_prefix: int = struct.field(pytree_node=False, default=1)
    # patches per image, the upper bound of every size; None: not known
    patches: int | None = struct.field(pytree_node=False, default=None)
    # (height, width) of the patches; None after the first reduction
    grid: tuple[int, int] | None = struct.field(pytree_node=False, default=None)

    def image_rows(self, values):
        """Values of the image tokens. [B, prefix + n, ..] -> [B, n, ..]."""
        return values[:, self.num_prefix :]

    def prefix_rows(self, values):
        """Values of the prefix. [B, prefix + n, ..] -> [B, prefix, ..]."""
        return values[:, : self.num_prefix]

    @property
    def effective_size(self):
        """Token weights in attention and pooling, [B, prefix + n]."""
        return self.size if self.attn_size is None else self.attn_size

    @property
    def full_mask(self):
        """Mask of all tokens with a live prefix, [B, prefix + n]; None: no mask."""
        if self.mask is None:
            return None
        front = ((0, 0), (self.num_prefix, 0))
        return jnp.pad(self.mask, front, constant_values=1)


@struct.dataclass
class ReducerInputs:
    """Values of a block's image tokens, as inputs of a reducer.

    Scores, features and `rng` may be None unless the reducer's `needed_inputs` has
    them. At site "pre", attention fields come from the block before.
    """

    x: Array  # [B, n, D]: the residual stream at the step's site
    size: Array  # [B, n]: patches per token
    attn_size: Array | None = None  # [B, n]: see `TokenState.effective_size`
    # [B, n, d]: the feature to compare: mean over heads of key, query or value; the
    # token itself; or the normed input of attention
    metric: Array | None = None
    key: Array | None = None  # [B, n, d]: mean over heads
    # [B, prefix + n, ..]: x and metric with the prefix; None: not at hand
    all_x: Array | None = None
    all_metric: Array | None = None
    # [B, n] float32: attention from the class token, mean over heads
    cls_attn: Array | None = None
    # [B, n] float32: attention from the mean query of all tokens, mean over heads
    mean_attn: Array | None = None
    cls_and_mean_attn: Array | None = None  # [B, n] float32: the mean of both
    # [B, n] float32: received attention, mean over heads and queries
    attn_columns: Array | None = None
    # [B, n] float32: token changes by attention, as shares with sum 1
    shift: Array | None = None
    # [B, n] float32: attention from the head's probe, mean over heads
    probe: Array | None = None
    mask: Array | None = None  # [B, n]: as in TokenState
    # [B] random keys, from (seed, step, position in the global batch, block) in
    # training, from (seed, index in the data set, block) in evaluation
    rng: Array | None = None
    # (height, width) of the patches before the first reduction
    grid: tuple[int, int] | None = struct.field(pytree_node=False, default=None)
    num_prefix: int = struct.field(pytree_node=False, default=1)
    # number of heads of the block's attention
    num_heads: int = struct.field(pytree_node=False, default=1)


@struct.dataclass
class Assignment:
    """A hard reduction: every token goes to one slot, or is dropped."""

    slot_of_token: Array  # [B, n] int32: token slots, or DROPPED; no slot is empty
    # [B, n] float or bool: feature weights; None: the sizes, or 1 without `by_size`
    weight: Array | None = None
    # [B, n]: contributions to the slots' attention sizes; None: the tokens' own
    attn_size: Array | None = None
    # the same map as indices for gathering; None: a matrix product moves the tokens
    index: SlotIndex | None = None
    n_out: int = struct.field(pytree_node=False, default=0)  # number of slots
    # True: slots are weighted means of tokens; False: weighted sums
    mean: bool = struct.field(pytree_node=False, default=True)
    # without `weight`: True weighs tokens by size, False equally
    by_size: bool = struct.field(pytree_node=False, default=True)

    def feature_weights(self, size):
        """Feature weights, [B, n] float32; size: [B, n]."""
        if self.weight is not None:
            return self.weight.astype(jnp.float32)
        return size if self.by_size else jnp.ones_like(size)


@struct.dataclass
class Mixing:
    """A soft reduction: every slot is a weighted sum of all tokens."""

    matrix: Array  # [B, n_out, n]
    # [B, n_out]: slot weights in proportional attention; None: 1
    attn_size: Array | None = None


@struct.dataclass
class Masking:
    """A training-only reduction: masks tokens for attention and removes no token."""

    # [B, n] float: 1 for live and 0 for masked tokens, with a straight-through gradient
    keep: Array
    # [B, D]: one more token, always live (SPViT's package); None: no token
    append: Array | None = None


def initial_state(x, num_prefix=1, grid=None, coordinates=None):
    """Make a TokenState from tokens x [B, prefix + n, D] with one patch per token.

    grid: (height, width) in patches
    coordinates: [n, 2], patch positions; None: the model does not use coordinates
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
