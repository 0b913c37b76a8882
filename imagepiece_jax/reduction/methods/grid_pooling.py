"""Grid pooling: average neighboring tokens once, regardless of their content."""

import dataclasses
import math
from typing import Self, cast

import jax.numpy as jnp

from imagepiece_jax.common.checks import option, refuse_any
from imagepiece_jax.reduction.block_plan import KeepFixed, Step, StepCounts, Unreachable
from imagepiece_jax.reduction.methods.method import Method, ModelFacts
from imagepiece_jax.reduction.reducers import Reducer
from imagepiece_jax.reduction.schedules import find_falls, round_half_up
from imagepiece_jax.reduction.state import Assignment


@dataclasses.dataclass(frozen=True)
class Cells(Reducer):
    """Average the tokens in the cells of a `size` x `size` grid.

    If patches do not divide evenly, cells differ by at most one row and one column.
    """

    size: int

    def check_fits(self, grid: tuple[int, int] | None, counts: StepCounts) -> None:
        sentence = f"grid_size is {self.size}, but the patch grid here is {grid}"
        refuse_any((grid is None or self.size > min(grid), sentence))

    def __call__(self, inputs, counts, train=False):
        height, width = inputs.grid  # not None, see `check_fits`
        cell_row = jnp.arange(height) * self.size // height
        cell_column = jnp.arange(width) * self.size // width
        cell_grid = cell_row[:, None] * self.size + cell_column[None, :]
        cell_of_patch = cell_grid.reshape(1, -1).astype(jnp.int32)
        # [batch, patches]: nothing has left before
        slot_of_token = jnp.broadcast_to(cell_of_patch, inputs.size.shape)
        return Assignment(slot_of_token, n_out=counts.n_out)


@dataclasses.dataclass(frozen=True)
class GridPooling(Method):
    """Before `block`, average image tokens over a `grid_size` x `grid_size` grid."""

    amount_fields = ("grid_size", "block")
    ratio_field = "block"

    # On DeiT-S at 224 pixels the defaults cost 2.87 GMACs (2.7 to 3.0 for the rest of
    # the methods), and a cell is exactly 2 x 2 patches.
    grid_size: int = option(7, least=1)  # cells per side, at most the patches per side
    block: int = option(6, least=0)  # the first block with the cells

    def scale_schedule(self, ratio: float, facts: ModelFacts) -> Self:
        # A larger ratio moves the same cells to an earlier block.
        block = min(facts.depth - 1, max(1, round_half_up((1 - ratio) * facts.depth)))
        return dataclasses.replace(self, block=block)

    def steps(self, facts: ModelFacts) -> tuple[Step, ...]:
        count_after_block = {self.block: self.grid_size**2}
        if self.counts is not None:
            count_after_block = find_falls(cast(tuple, self.counts), facts.patches)
        steps = []
        for block, num_cells in count_after_block.items():
            side = math.isqrt(num_cells)
            if side**2 != num_cells:
                raise Unreachable(f"counts has {num_cells}, not a square number")
            steps.append(Step(block, Cells(side), KeepFixed(num_cells), site="pre"))
        return tuple(steps)
