"""Rotary positions: queries and keys turned by the coordinates of their patches.

Neighboring channels of a head are the two parts of a plane, which turns by the token's
coordinate times a frequency (Su et al. 2021, "RoFormer"), half of the planes with one
coordinate and half with the other (Fang et al. 2023, "EVA-02"; Simeoni et al. 2025,
"DINOv3"). Merged tokens have coordinates, too.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.fields import (
    CheckedFields,
    choice,
    number,
    optional,
    several,
)


@dataclasses.dataclass(frozen=True)
class Rotary(CheckedFields):
    """How patches get coordinates, and how these turn the channels of a head."""

    # "corner": rows and columns count from `start` and are scaled from the image's grid
    # to `reference`; "center": an image of any size reaches from -1 to 1, a patch
    # stands at its middle, and 1 is a full turn of the first plane
    origin: str = choice("corner", ("corner", "center"))
    # the factor between frequencies of the first plane and behind the last
    temperature: float = number(10000.0, above=0)
    # grid (height, width) of the training
    reference: tuple[float, float] | None = optional(
        several(None, number(), "None and two numbers of patches", length=2)
    )
    start: float = number(0.0)  # the first row and column
    axes: str = choice("yx", ("yx", "xy"))  # the first turns the first half of planes
    # the channels of a plane are neighbors, or at one place in both halves of a head
    planes: str = choice("neighbors", ("neighbors", "halves"))

    def coordinates(self, grid: tuple[int, int]) -> np.ndarray:
        """(y, x) of all patches of a grid (height, width). -> [n, 2] float32."""
        sides = []
        for axis, side in enumerate(grid):
            place = np.arange(side)
            if self.origin == "center":
                place = 2 * (place + 0.5) / side - 1
            else:
                place = place + self.start
                if self.reference is not None:
                    place = place / side * self.reference[axis]
            sides.append(place)
        grid = np.meshgrid(*sides, indexing="ij")
        return np.stack(grid, axis=-1).reshape(-1, 2).astype(np.float32)

    def rotations(self, coordinates: jax.Array, width: int, prefix: int = 0):
        """Cosines and sines of a head's planes, [B, prefix + n, 1, width / 2] each.

        coordinates: [B, n, 2], (y, x) of the tokens; those of NumPy give NumPy's arrays
        width: channels of a head
        prefix: number of tokens in front of them, which do not turn
        """
        xp = coordinates.__array_namespace__()
        angles = self.angles(coordinates, width)
        angles = xp.pad(angles, ((0, 0), (prefix, 0), (0, 0), (0, 0)))
        return xp.cos(angles), xp.sin(angles)

    @functools.cache  # noqa: B019, all blocks of a program share one constant
    def grid_rotations(self, grid: tuple[int, int], width: int, prefix: int = 0):
        """`rotations` of all patches of a grid, in NumPy."""
        return self.rotations(self.coordinates(grid)[None], width, prefix)

    def angles(self, coordinates, width):
        """Angles of a head's planes, those of one coordinate after those of the other.

        [B, n, 2] -> [B, n, 1, width / 2]
        """
        bands = width // 4
        frequency = self.temperature ** -(np.arange(bands) / bands)
        if self.origin == "center":
            frequency = 2 * np.pi * frequency
        if self.axes == "xy":
            coordinates = coordinates[..., ::-1]
        frequency = frequency.astype(np.float32)[None, None, None]
        angles = coordinates[..., None] * frequency
        return angles.reshape(*angles.shape[:2], 1, 2 * bands)

    def rotate(self, heads: jax.Array, rotations) -> jax.Array:
        """Heads [B, N, H, d] turned in float32 by `rotations` [B or 1, N, 1, d / 2]."""
        cos, sin = rotations
        x = heads.astype(jnp.float32)
        if self.planes == "halves":
            a, b = jnp.split(x, 2, axis=-1)
        else:
            a = x[..., ::2]
            b = x[..., 1::2]
        turned_a = a * cos - b * sin
        turned_b = b * cos + a * sin
        if self.planes == "halves":
            turned = jnp.concatenate([turned_a, turned_b], axis=-1)
        else:
            turned = jnp.stack([turned_a, turned_b], axis=-1).reshape(x.shape)
        return turned.astype(heads.dtype)
