"""Rotary positions: queries and keys rotate with their patches' coordinates.

Two channels form a plane, rotated by coordinate times frequency (Su et al. 2021,
"RoFormer"): half the planes by row, half by column (Fang et al. 2023, "EVA-02"; Simeoni
et al. 2025, "DINOv3"). A merged token has its patches' mean coordinates.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from imagepiece_jax.common import checks
from imagepiece_jax.common.checks import option
from imagepiece_jax.kernels.array_shapes import TokenHeads

Coordinates = Float[Array | np.ndarray, "batch tokens 2"]
PlaneAngles = Float[Array | np.ndarray, "batch _ 1 planes"]
Rotation = Float[Array | np.ndarray, "#batch tokens 1 planes"]
Rotations = tuple[Rotation, Rotation]  # (cosines, sines)


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Patch coordinates, and the rotation of a head's channels by them."""

    # "corner": rows and columns count from `start`, scaled from the image's grid to the
    # grid `reference`. "center": an image of any size spans -1 to 1, coordinates are
    # patch centers, and 1 is a full rotation of the first plane.
    origin: str = option("corner", ("corner", "center"))
    # the first plane's frequency / the frequency a plane after the last would have
    temperature: float = option(10000.0, above=0)
    # grid (height, width) in training; None: coordinates are not scaled
    reference: tuple[float, float] | None = None
    start: float = option(0.0)  # coordinate of the first row and of the first column
    # The first axis rotates the first half of the planes.
    axes: str = option("yx", ("yx", "xy"))
    # A plane's channels are "neighbors", or have equal indices in the two "halves" of a
    # head.
    planes: str = option("neighbors", ("neighbors", "halves"))

    def __post_init__(self) -> None:
        checks.check_options(self)
        reference = checks.replace_lists(self.reference)
        object.__setattr__(self, "reference", reference)
        if reference is not None:
            height, width = reference
            checks.check_range("reference", height)
            checks.check_range("reference", width)

    def coordinates(self, grid: tuple[int, int]) -> Float32[np.ndarray, "patches 2"]:
        """(y, x) of all patches in a grid (height, width)."""
        coordinates_per_axis = []
        for axis, side in enumerate(grid):
            axis_coordinates = np.arange(side)
            if self.origin == "center":
                axis_coordinates = 2 * (axis_coordinates + 0.5) / side - 1
            else:
                axis_coordinates = axis_coordinates + self.start
                if self.reference is not None:
                    axis_coordinates = axis_coordinates / side * self.reference[axis]
            coordinates_per_axis.append(axis_coordinates)
        y_and_x = np.meshgrid(*coordinates_per_axis, indexing="ij")
        return np.stack(y_and_x, axis=-1).reshape(-1, 2).astype(np.float32)

    def rotations(
        self, coordinates: Coordinates, head_dim: int, num_prefix: int = 0
    ) -> tuple[PlaneAngles, PlaneAngles]:
        """(cosines, sines) of plane angles, in the order of `axes`.

        coordinates: (y, x) of the tokens; NumPy in, NumPy out
        head_dim: channels per head
        num_prefix: count of prefix tokens, which get angle 0
        """
        xp = coordinates.__array_namespace__()
        planes_per_axis = head_dim // 4  # two channels a plane, two axes
        exponents = np.arange(planes_per_axis) / planes_per_axis
        frequencies = self.temperature**-exponents
        if self.origin == "center":  # 1 is a full rotation of the first plane
            frequencies = 2 * np.pi * frequencies
        if self.axes == "xy":
            coordinates = coordinates[..., ::-1]
        frequency_row = frequencies.astype(np.float32)[None, None, None]
        # [batch, tokens, axes, planes per axis], then one axis of heads and all planes
        axis_angles = coordinates[..., None] * frequency_row
        angles = axis_angles.reshape(*axis_angles.shape[:2], 1, 2 * planes_per_axis)
        all_angles = xp.pad(angles, ((0, 0), (num_prefix, 0), (0, 0), (0, 0)))
        return xp.cos(all_angles), xp.sin(all_angles)

    @functools.cache  # noqa: B019, all blocks of a program share one constant
    def grid_rotations(
        self, grid: tuple[int, int], head_dim: int, num_prefix: int = 0
    ) -> tuple[Any, Any]:
        """`rotations` for all patches in a grid, as NumPy arrays."""
        return self.rotations(self.coordinates(grid)[None], head_dim, num_prefix)

    def rotate(self, heads: TokenHeads, rotations: Rotations) -> TokenHeads:
        """Rotate heads in float32."""
        cos, sin = rotations
        x = heads.astype(jnp.float32)
        # A plane's two channels, as coordinates of a point that rotates
        if self.planes == "halves":
            first, second = jnp.split(x, 2, axis=-1)
        else:
            first = x[..., ::2]
            second = x[..., 1::2]
        rotated_first = first * cos - second * sin
        rotated_second = second * cos + first * sin
        if self.planes == "neighbors":
            # jnp.stack would have five axes, which a phone's GPU does not take.
            column_shape = (*x.shape[:2], -1, 1)
            rotated_first = rotated_first.reshape(column_shape)
            rotated_second = rotated_second.reshape(column_shape)
        rotated = jnp.concatenate([rotated_first, rotated_second], axis=-1)
        return rotated.reshape(x.shape).astype(heads.dtype)
