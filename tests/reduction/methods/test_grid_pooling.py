import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.grid_pooling import Cells
from imagepiece_jax.reduction.state import ReducerInputs, initial_state
from tests.helpers import oracles, tiny_vit


@functools.partial(tiny_vit.compiled, static_argnums=(1, 2, 3))
def pool_tokens(x, grid, size, prefix):
    """(state, slots) after pooling the tokens x [B, prefix + n, D]."""
    state = initial_state(x, prefix)
    inputs = ReducerInputs(x[:, prefix:], state.size[:, prefix:], grid=grid)
    counts = StepCounts(n_in=inputs.x.shape[1], n_out=size * size)
    result = Cells(size)(inputs, counts)
    return moves.apply_result(state, result), result.slot_of_token


@pytest.mark.parametrize(
    "grid, size, prefix, dtype",
    [
        ((5, 5), 3, 0, "float32"),
        ((5, 5), 3, 2, "float32"),
        ((4, 6), 4, 1, "float32"),
        ((7, 3), 1, 1, "bfloat16"),
        ((5, 5), 5, 1, "bfloat16"),
    ],
)
def test_cells_equal_slow_means(grid, size, prefix, dtype):
    n = grid[0] * grid[1]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, prefix + n, 3)).astype(jnp.dtype(dtype))
    state, slots = pool_tokens(x, grid, size, prefix)
    assert state.x.dtype == dtype
    tolerance = 1e-6 if dtype == "float32" else 2**-7  # sum and quotient round
    cell_of_patch = [
        (i * size // grid[0]) * size + j * size // grid[1]
        for i, j in itertools.product(range(grid[0]), range(grid[1]))
    ]
    for image in range(2):
        assert slots[image].tolist() == cell_of_patch
        patches = np.asarray(x[image, prefix:], float)
        means, sizes = oracles.apply_map(patches, np.ones(n), cell_of_patch)
        moved = np.asarray(state.x[image, prefix:], float)
        np.testing.assert_allclose(moved, means, rtol=tolerance, atol=1e-6)
        np.testing.assert_array_equal(state.size[image, prefix:], sizes)
    np.testing.assert_array_equal(state.x[:, :prefix], x[:, :prefix])


@pytest.mark.parametrize(
    "size, grid, message",
    [(4, (9, 3), "grid_size is 4, .* .9, 3."), (2, None, "grid here is None")],
)
def test_a_smaller_or_missing_grid_is_refused(size, grid, message):
    with pytest.raises(InputError, match=message):
        Cells(size).check_fits(grid, StepCounts(n_in=27, n_out=size * size))
