"""Token states, what reducers read and return, and the map from patches to tokens."""

import chex
import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array

DROPPED = -1


@struct.dataclass
class TokenState:
    """Tokens between two blocks, prefix (class token) first.

    x: [B, prefix + n, D]; size: [B, prefix + n] float32, patches behind each token,
    exact; source: [B, n0] int32, image slot 0..n-1 that holds each patch, or DROPPED;
    None when it is not traced, or no longer defined; mask: [B, n] float, 1 for image
    tokens that are live, 0 for those removed in all but shape (masked training only);
    coordinates: [B, n, 2] float32, where each token stands, the mean of its patches,
    for models whose positions are rotary, else None; attn_size: [B, prefix + n]
    float32, positive, as how many tokens proportional attention and pooling by mean
    count each, None where that is its size; grid: (height, width) of the patches, None
    after the first reduction.
    """

    x: Array
    size: Array
    source: Array | None = None
    mask: Array | None = None
    coordinates: Array | None = None
    attn_size: Array | None = None
    num_prefix: int = struct.field(pytree_node=False, default=1)
    grid: tuple[int, int] | None = struct.field(pytree_node=False, default=None)

    @property
    def effective_size(self):
        """[B, prefix + n], as how many tokens attention counts each."""
        return self.size if self.attn_size is None else self.attn_size

    @property
    def full_mask(self):
        """[B, prefix + n] of all tokens: the prefix is always live; None: no mask."""
        if self.mask is None:
            return None
        return jnp.pad(self.mask, ((0, 0), (self.num_prefix, 0)), constant_values=1)


@struct.dataclass
class Taps:
    """What a reducer can read of a block, image tokens only.

    x: [B, n, D] residual stream at the step's site; size: [B, n] patches of each token;
    attn_size: [B, n] as how many tokens attention counts each; metric: [B, n, d] what
    is compared (mean over heads of key, query or value; the token itself; or, normed,
    the attention's input); key: [B, n, d] mean over heads of the key;
    cls_attn: [B, n] float32 class-attention row, mean over heads, class column dropped;
    attn_columns: [B, n] float32 attention received, mean over heads and queries;
    probe: [B, n] float32, attention of the head's probe, mean over heads; mask: [B, n]
    live tokens in masked training; rng: [B] keys of (seed, step, position in the global
    batch, block), in evaluation of (seed, index in the data set, block). At site "pre"
    the attention fields are those of the block before. A field that the reducer's
    `needs` does not name is None. grid: (height, width) while there is one; num_heads:
    heads of the block's attention, slices of D that belong together.
    """

    x: Array
    size: Array
    attn_size: Array | None = None
    metric: Array | None = None
    key: Array | None = None
    cls_attn: Array | None = None
    attn_columns: Array | None = None
    probe: Array | None = None
    mask: Array | None = None
    rng: Array | None = None
    grid: tuple[int, int] | None = struct.field(pytree_node=False, default=None)
    num_prefix: int = struct.field(pytree_node=False, default=1)
    num_heads: int = struct.field(pytree_node=False, default=1)


@struct.dataclass
class SlotIndex:
    """A slot map as token indices, the form in which tokens are gathered.

    keep: [B, n_out] one token of each slot; absorbed: [B, e] the tokens that go to a
    slot beside the one that it keeps, target: [B, e] the slot of each, n_out for
    padding; groups: [B, m] every slot that absorbs a token, in any order, repeated and
    other slots allowed; group_keep: [B, m] the tokens that the groups keep.
    """

    keep: Array
    absorbed: Array
    target: Array
    groups: Array
    group_keep: Array

    @classmethod
    def of_kept(cls, keep):
        """Every slot has one token. [B, n_out] -> SlotIndex."""
        none = jnp.zeros((keep.shape[0], 0), jnp.int32)
        return cls(keep, absorbed=none, target=none, groups=none, group_keep=none)


@struct.dataclass
class Assignment:
    """A hard reduction: every token goes to one slot, or nowhere.

    dest: [B, n] int32 in [0, n_out) or DROPPED, onto all slots; weight: [B, n] feature
    weights, None means size; mean: weighted mean of a slot's tokens, else weighted sum;
    attn_size: [B, n] what each token adds to the attention size of its slot, None means
    its own; index: the same map as token indices, as `merging.slot_index` makes it of
    any map: tokens are then gathered, without it they are moved by a product.
    """

    dest: Array
    weight: Array | None = None
    attn_size: Array | None = None
    index: SlotIndex | None = None
    n_out: int = struct.field(pytree_node=False, default=0)
    mean: bool = struct.field(pytree_node=False, default=True)


@struct.dataclass
class Mixing:
    """A soft reduction: every slot is a weighted sum of all tokens.

    matrix: [B, n_out, n]; attn_size: [B, n_out] as how many tokens attention counts
    each slot, None means one.
    """

    matrix: Array
    attn_size: Array | None = None


@struct.dataclass
class Masking:
    """A reduction that training only marks: shapes stay, attention reads the mask.

    keep: [B, n] float, 1 for live tokens, differentiable by straight-through; append:
    [B, D], one more token that is always live (a package token), or None.
    """

    keep: Array
    append: Array | None = None


def start(x, num_prefix=1, trace_source=False, grid=None, coordinates=None):
    """State before any reduction. x [B, prefix + n, D]: every token is one patch.

    coordinates: [n, 2], those of the patches; None: the model does not use them.
    """
    batch, total = x.shape[:2]
    if coordinates is not None:
        coordinates = jnp.broadcast_to(coordinates, (batch, *coordinates.shape))
    patches = jnp.arange(total - num_prefix, dtype=jnp.int32)
    source = jnp.broadcast_to(patches, (batch, total - num_prefix))
    return TokenState(
        x=x,
        size=jnp.ones((batch, total), jnp.float32),
        source=source if trace_source else None,
        coordinates=coordinates,
        num_prefix=num_prefix,
        grid=grid,
    )


def compose(outer, inner):
    """Slots of `inner` sent through `outer`; dropped stays dropped.

    [B, n] int, [B, m] int in [0, n) or DROPPED -> [B, m].
    """
    chex.assert_rank([outer, inner], 2)
    # Minus one would wrap to the last slot: guard the gather, then mask.
    out = jnp.take_along_axis(outer, jnp.maximum(inner, 0), axis=-1)
    return jnp.where(inner == DROPPED, DROPPED, out)


def unmerge(values, source, fill=0.0, history=None):
    """Spread slot values back over the patches.

    values [B, n, D], source [B, n0] -> [B, n0, D]. Dropped patches get `fill`: a
    number, or one vector an image [B, D], such as the class token. With `history` they
    get the value of their token at the step that dropped it: one pair a step, from the
    first on, of values [B, n, D] of the tokens before it and its dest [B, n]; `fill` is
    then for those that no step of it drops.
    """
    chex.assert_rank([values, source], [3, 2])
    fill = jnp.asarray(fill, values.dtype)
    fill = fill[:, None, :] if fill.ndim else fill[None, None, None]
    if history is not None:
        fill = _last_values(history, source, fill)
    spread = _read_slots(values, source)
    return jnp.where((source == DROPPED)[:, :, None], fill, spread)


def _last_values(history, source, fill):
    """Value of each patch at the step that dropped it, else `fill`. -> [B, n0, D]."""
    slot = jnp.broadcast_to(jnp.arange(source.shape[1]), source.shape)
    for values, dest in history:
        after = compose(dest, slot)
        leaves = (slot != DROPPED) & (after == DROPPED)
        here = _read_slots(values, slot).astype(fill.dtype)
        fill = jnp.where(leaves[:, :, None], here, fill)
        slot = after
    return fill


def _read_slots(values, slot):
    """[B, n, D], [B, m] -> [B, m, D]; where `slot` is DROPPED, that of slot 0."""
    return jnp.take_along_axis(values, jnp.maximum(slot, 0)[:, :, None], axis=1)
