"""The image tokens that a model ends with, and their places in the image."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.errors import InputError
from imagepiece_jax.models.vit import Outputs
from imagepiece_jax.reduction.moves import mean_by, sum_by_slot
from imagepiece_jax.reduction.ops import gather_rows, invert
from imagepiece_jax.reduction.provenance import compose, follow
from imagepiece_jax.reduction.state import DROPPED, Masking


class TokenList(NamedTuple):
    """The image tokens that a model ends with, sorted by row and column.

    A token that is mixed from all patches (TokenLearner) has the size 1, and the mean
    coordinates of the patches by weight. Then no patch belongs to only one token.
    """

    tokens: jax.Array  # [B, K, D], after the last norm
    size: jax.Array  # [B, K] float32, number of patches
    source: jax.Array  # [B, h, w] int32, each patch's token, or -1
    coordinates: jax.Array  # [B, K, 2] float32, (row, column), middle of the patches


def token_list(
    outputs: Outputs,
    grid: tuple[int, int],
    norm: Callable[[jax.Array], jax.Array] | None = None,
) -> TokenList:
    """The image tokens of a forward pass as a TokenList.

    outputs: of a model with any reduction or none
    grid: (height, width) of its patches
    norm: as for `feature_map`
    Raises InputError for another grid, and for outputs of masked training.
    """
    check_outputs(outputs, grid)
    state = outputs.state
    path = follow(outputs.results, outputs.taps)[-1]
    batch, total, _ = state.x.shape
    count = total - state.num_prefix
    patches = grid[0] * grid[1]
    row, column = _centers(path, count, batch, grid)
    above = row[:, None, :] < row[:, :, None]
    same_row = row[:, None, :] == row[:, :, None]
    earlier = above | (same_row & _before(column))
    rank = jnp.sum(earlier, axis=-1, dtype=jnp.int32)
    order = invert(rank, count)
    if path.mixed:
        source = jnp.full((batch, patches), DROPPED, jnp.int32)
    elif path.slot is None:
        source = rank
    else:
        source = compose(rank, path.slot)
    tokens = state.x[:, state.num_prefix :]
    if norm:
        tokens = norm(tokens)
    tokens = gather_rows(tokens, order)
    size = gather_rows(state.size[:, state.num_prefix :], order)
    source = source.reshape(batch, *grid)
    centers = jnp.stack([row, column], axis=-1)
    return TokenList(tokens, size, source, gather_rows(centers, order))


def _before(values):
    """Whether token j has a smaller value than token i, ties by index. -> [B, i, j]."""
    value_i = values[:, :, None]
    value_j = values[:, None, :]
    index = np.arange(values.shape[1])
    j_is_first = (index[None, :] < index[:, None])[None]
    return (value_j < value_i) | ((value_j == value_i) & j_is_first)


def _centers(path, count, batch, grid):
    """Rows and columns of `count` tokens, the means of their patches, [B, count] each.

    They are made of sums of whole numbers, which are exact, so that means that are
    equal tie when `token_list` sorts by them.

    path: the PatchPath that ends in these tokens
    """
    if path.mixed:
        before, mixing, x = path.mixed
        centers = _centers(before, x.shape[1], batch, grid)
        weight = mixing.matrix.astype(jnp.float32)
        mixed = mean_by(weight, jnp.stack(centers, axis=-1))
        centers = mixed[..., 0], mixed[..., 1]
    else:
        centers = np.indices(grid, np.float32).reshape(2, 1, -1)
        centers = [jnp.broadcast_to(axis, (batch, axis.size)) for axis in centers]
    if path.slot is None:
        return centers
    size = sum_by_slot(jnp.ones_like(centers[0]), path.slot, count)
    return [sum_by_slot(axis, path.slot, count) / size for axis in centers]


def check_outputs(outputs, grid):
    """InputError for another grid, and for outputs of masked training."""
    state = outputs.state
    results = outputs.results
    masks = [result for result in results if isinstance(result, Masking)]
    if state.mask is not None or masks:
        problem = "are those of masked training, where no token is gone"
        allowed = "those of a model made without masked=True"
        raise InputError("outputs", None, allowed, problem=problem)
    patches = state.x.shape[1] - state.num_prefix
    if outputs.taps:  # of the first step, which saw all patches
        patches = outputs.taps[0].x.shape[1]
    if grid[0] * grid[1] != patches:
        problem = f"is {grid[0]}x{grid[1]}, but the model had {patches} patches"
        raise InputError("grid", grid, f"grids of {patches}", problem=problem)
