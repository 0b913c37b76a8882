"""Position embeddings resized to another grid, by the code of each family."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.image_size import sides


@dataclasses.dataclass(frozen=True)
class Positions:
    """The rows of a model's position embedding, and how they are resized."""

    prefix: int  # rows of tokens in front of the patches
    grid: tuple[int, int]  # (height, width) of the patches
    how: str = "antialias"  # `architecture.Architecture.resize`
    old: tuple[int, int] | None = None  # grid of the trained positions; None: a square

    @classmethod
    def of(cls, model, image_size, old=None):
        """The Positions of a ViT for images of a size.

        image_size: pixels a side, or (height, width)
        old: size of the images that the positions to be resized were trained for
        """
        patch, arch = model.patch_size, model.arch
        return cls(
            arch.prefix if arch.prefix_positions else 0,
            tuple(side // patch for side in sides(image_size)),
            arch.resize,
            None if old is None else tuple(side // patch for side in sides(old)),
        )

    def fit(self, pos_embed: np.ndarray) -> np.ndarray | None:
        """Position embedding [1, rows, D] resized to this grid; None: from no grid."""
        patches, old = pos_embed.shape[1] - self.prefix, self.old
        if old is None or math.prod(old) != patches:
            old = (math.isqrt(max(0, patches)),) * 2
        if patches <= 0 or math.prod(old) != patches:
            return None
        if old == self.grid:
            return pos_embed
        width = pos_embed.shape[2]
        front = np.asarray(pos_embed[:, : self.prefix], np.float32)
        grid = np.asarray(pos_embed[0, self.prefix :], np.float32)
        grid = resize(grid.reshape(*old, width), self.grid, self.how)
        return np.concatenate([front, grid.reshape(1, -1, width)], axis=1)


def resize(grid: np.ndarray, new: tuple[int, int], how: str) -> np.ndarray:
    """Positions of a grid interpolated to another.

    grid: [h, w, D] float32
    new: (height, width)
    how: "antialias" (Keys' kernel with a = -0.5, wider where the grid shrinks: timm),
        "bicubic" (a = -0.75, borders repeated: PyTorch without antialiasing), "offset"
        (the same, by DINO's factor of (new + 0.1) / old) or "linear" (corners stay in
        place, as in SciPy's zoom of order 1: Google's vit_jax and big_vision)
    Returns [*new, D] float32.
    """
    if how == "antialias":
        shape = (*new, grid.shape[2])
        return np.asarray(jax.image.resize(jnp.asarray(grid), shape, "cubic"))
    both = zip(grid.shape[:2], new, strict=True)
    if how == "linear":
        rows, columns = (_linear(old, side) for old, side in both)
    else:
        offset = 0.1 if how == "offset" else 0.0  # of DINO and DINOv2
        rows, columns = (_bicubic(old, side, offset) for old, side in both)
    return np.einsum("ab,cd,bdx->acx", rows, columns, grid, optimize=True)


def _bicubic(old, new, offset):
    """Weights of PyTorch's bicubic interpolation along one axis. -> [new, old]."""
    at = (np.arange(new) + 0.5) * old / (new + offset) - 0.5
    first = np.floor(at).astype(int)
    weights, a = np.zeros((new, old)), -0.75
    for step in (-1, 0, 1, 2):
        distance = np.abs(at - first - step)
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        column = np.clip(first + step, 0, old - 1)
        np.add.at(weights, (np.arange(new), column), np.where(distance <= 1, near, far))
    return weights.astype(np.float32)


def _linear(old, new):
    """Weights of linear interpolation between the outermost points. -> [new, old]."""
    distance = np.linspace(0, old - 1, new)[:, None] - np.arange(old)
    return np.maximum(0, 1 - np.abs(distance)).astype(np.float32)
