"""Data classes: tokens between blocks, inputs and results of reducers, and outputs."""

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Shaped

from imagepiece_jax.kernels.array_shapes import AllRows, TokenRows, TokenValues
from imagepiece_jax.kernels.merging import Assignment as Assignment

TokenFeatures = Float[Array, "batch tokens head_dim"]


@struct.dataclass
class TokenState:
    """Tokens between two blocks: first the prefix (class token), then the image."""

    x: Float[Array, "batch prefix+tokens dim"]
    # patches per token, exact in float32
    size: Float[Array, "batch prefix+tokens"]
    # 1 for live image tokens, 0 for masked; None outside masked training
    mask: TokenValues | None = None
    # mean position of a token's patches; None without rotary
    coordinates: Float[Array, "batch tokens 2"] | None = None
    # positive token weights in proportional attention and mean pooling; None: the sizes
    attn_size: Float[Array, "batch prefix+tokens"] | None = None
    num_prefix: int = struct.field(pytree_node=False, default=1)
    # patches per image, the upper bound of every size; None: not known
    patches: int | None = struct.field(pytree_node=False, default=None)
    # (height, width) of the patches; None after the first reduction
    grid: tuple[int, int] | None = struct.field(pytree_node=False, default=None)

    def image_rows(
        self, values: Shaped[Array, "batch all_tokens ..."]
    ) -> Shaped[Array, "batch rows ..."]:
        """Rows of the image tokens."""
        return values[:, self.num_prefix :]

    @property
    def effective_size(self) -> Float[Array, "batch all_tokens"]:
        """Token weights in attention and pooling."""
        return self.size if self.attn_size is None else self.attn_size

    @property
    def full_mask(self) -> Float[Array, "batch all_tokens"] | None:
        """Mask of all tokens with a live prefix; None: no mask."""
        if self.mask is None:
            return None
        return jnp.pad(self.mask, ((0, 0), (self.num_prefix, 0)), constant_values=1)


@struct.dataclass
class ReducerInputs:
    """Values of a block's image tokens, as inputs of a reducer.

    Scores, features and `rng` may be None unless the reducer's `needed_inputs` has
    them. At site "pre", attention fields come from the block before.
    """

    x: TokenRows  # the residual stream at the step's site
    size: TokenValues  # patches per token
    # see `TokenState.effective_size`
    attn_size: TokenValues = struct.field(default=None)
    # the feature to compare: mean over heads of key, query or value; the token itself;
    # or the normed input of attention
    metric: TokenFeatures = struct.field(default=None)
    key: TokenFeatures | None = None  # mean over heads
    # x and metric with the prefix; None: not at hand
    all_x: Float[Array, "batch prefix+tokens dim"] | None = None
    all_metric: Float[Array, "batch prefix+tokens head_dim"] | None = None
    # Scores, in float32:
    cls_attn: TokenValues | None = None  # attention from the class token, mean of heads
    # attention from the mean query of all tokens, mean over heads
    mean_attn: TokenValues | None = None
    cls_and_mean_attn: TokenValues | None = None  # the mean of both
    attn_columns: TokenValues | None = None  # received, mean over heads and queries
    shift: TokenValues | None = None  # changes by attention, as shares with sum 1
    probe: TokenValues | None = None  # attention from the head's probe, mean of heads
    mask: TokenValues | None = None  # as in TokenState
    # random keys, from (seed, step, position in the global batch, block) in
    # training, from (seed, index in the data set, block) in evaluation
    rng: Shaped[Array, " batch"] = struct.field(default=None)
    # (height, width) of the patches before the first reduction
    grid: tuple[int, int] | None = struct.field(pytree_node=False, default=None)
    num_prefix: int = struct.field(pytree_node=False, default=1)
    # of the block's attention
    num_heads: int = struct.field(pytree_node=False, default=1)


@struct.dataclass
class Mixing:
    """A soft reduction: every slot is a weighted sum of all tokens."""

    matrix: Float[Array, "batch slots tokens"]
    # slot weights in proportional attention; None: 1
    attn_size: Float[Array, "batch slots"] | None = None


@struct.dataclass
class Masking:
    """A training-only reduction: masks tokens for attention and removes no token."""

    # 1 for live and 0 for masked tokens, with a straight-through gradient
    keep: TokenValues
    # one more token, always live (SPViT's package); None: no token
    append: Float[Array, "batch dim"] | None = None


Result = Assignment | Mixing | Masking  # of a reducer


@struct.dataclass
class Outputs:
    """Results of a forward pass; jit computes only the fields in use.

    With `Execution.head_only` the last block returns the head's tokens alone and skips
    a reduction at site "mid".
    """

    # float32; equal to `pooled` without classes
    logits: Float[Array, "batch *tokens classes"]
    # the head's input; all tokens without a pool
    pooled: Float[Array, "batch *tokens dim"]
    tokens: TokenRows  # after the final norm
    state: TokenState  # all tokens before the final norm
    # the reducers' results and their inputs, one per reducing step
    results: tuple
    reducer_inputs: tuple[ReducerInputs, ...]
    # logits of the class head and of the distillation head; () without a distillation
    # token
    head_logits: tuple[Array, ...] = ()
    # the tokens after every block; () unless `with_states`
    states: tuple[TokenState, ...] = ()


def initial_state(
    x: AllRows,
    num_prefix: int = 1,
    grid: tuple[int, int] | None = None,
    coordinates: Float[Array | np.ndarray, "tokens 2"] | None = None,
) -> TokenState:
    """Make a TokenState with one patch per token.

    grid: (height, width) in patches
    coordinates: patch positions; None: the model does not use coordinates
    """
    batch_size, num_tokens = x.shape[:2]
    if coordinates is not None:
        coordinates = jnp.broadcast_to(coordinates, (batch_size, *coordinates.shape))
    return TokenState(
        x=x,
        size=jnp.ones((batch_size, num_tokens), jnp.float32),
        coordinates=coordinates,
        num_prefix=num_prefix,
        patches=num_tokens - num_prefix,
        grid=grid,
    )
