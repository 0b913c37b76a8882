import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.grid_pooling import Cells
from imagepiece_jax.reduction.state import ReducerInputs
from tests.helpers.reduction_steps import decide


@pytest.mark.parametrize(
    "grid, size", [((5, 5), 3), ((4, 6), 4), ((7, 3), 1), ((5, 5), 5)]
)
def test_cells_are_parts_of_the_grid(grid, size):
    row, column = np.indices(grid).reshape(2, -1)
    cell_of_patch = row * size // grid[0] * size + column * size // grid[1]
    x = np.ones((2, len(row), 3), np.float32)
    inputs = ReducerInputs(x, x[..., 0], grid=grid)
    result = decide(Cells(size), inputs, StepCounts(len(row), size * size))
    np.testing.assert_array_equal(result.slot_of_token, [cell_of_patch] * 2)
    assert result.mean and result.by_size


@pytest.mark.parametrize(
    "size, grid, message",
    [(4, (9, 3), "grid_size is 4, .* .9, 3."), (2, None, "grid here is None")],
)
def test_a_smaller_or_missing_grid_is_refused(size, grid, message):
    with pytest.raises(InputError, match=message):
        Cells(size).check_fits(grid, StepCounts(n_in=27, n_out=size * size))
