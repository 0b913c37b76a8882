"""Position embeddings for another grid, resized like each model family's own code."""

import logging
import math
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Float, Float32

from imagepiece_jax.common.image_size import ImageSize, patch_grid
from imagepiece_jax.models.config import ViTConfig

log = logging.getLogger("imagepiece_jax.models")


def fit_positions(
    tensors: Mapping[str, np.ndarray], config: ViTConfig, trained_size: ImageSize
) -> Mapping[str, np.ndarray]:
    """Resize the position embeddings in `tensors` to a model's grid, if necessary.

    tensors: {timm's name: array}
    trained_size: image size in training; if its patch count does not match the
        embeddings, a square grid is assumed
    """
    arch = config.arch
    old_embeddings = tensors.get("pos_embed", np.empty(()))
    num_prefix = arch.prefix if arch.prefix_positions else 0  # rows before the patches'
    # A shape other than [1, rows, dim] is left for the later shape check, which names
    # the problem.
    shape = np.shape(old_embeddings)
    if len(shape) != 3 or not arch.positions or shape[::2] != (1, config.embed_dim):
        return tensors
    num_patches = max(0, shape[1] - num_prefix)
    old_grid = patch_grid(trained_size, config.patch_size, cut=True)
    if math.prod(old_grid) != num_patches:
        old_grid = (math.isqrt(num_patches),) * 2
    if not num_patches or math.prod(old_grid) != num_patches or old_grid == config.grid:
        return tensors
    old_rows = np.asarray(old_embeddings[0], np.float32)
    prefix_rows, patch_rows = np.split(old_rows, [num_prefix])
    patch_embeddings = patch_rows.reshape(*old_grid, -1)
    resized_grid = resize_grid(patch_embeddings, config.grid, arch.resize)
    new_rows = np.concatenate([prefix_rows, resized_grid.reshape(-1, config.embed_dim)])
    log.info("position embeddings resized to %dx%d", *config.grid)
    return {**tensors, "pos_embed": new_rows[None]}  # [1, rows, dim]


def resize_grid(
    values: Float[np.ndarray, "height width dim"], new_shape: tuple[int, int], kind: str
) -> Float32[np.ndarray, "rows columns dim"]:
    """Interpolate embeddings on a grid.

    new_shape: (height, width)
    kind: "antialias" (timm: Keys' kernel, a = -0.5, wider if the grid shrinks),
        "bicubic" (PyTorch without antialiasing: a = -0.75, borders repeated), "offset"
        (DINO: "bicubic" by the factor (new + 0.1) / old) or "linear" (Google's vit_jax
        and big_vision: corners stay in place, like SciPy's zoom of order 1)
    """
    height, width, dim = values.shape
    if kind == "antialias":
        array = jax.device_put(values)
        return jax.device_get(jax.image.resize(array, (*new_shape, dim), "cubic"))
    if kind == "linear":
        row_weights = _linear_weights(height, new_shape[0])
        column_weights = _linear_weights(width, new_shape[1])
    else:
        offset = 0.1 if kind == "offset" else 0.0  # as in DINO and DINOv2
        row_weights = _bicubic_weights(height, new_shape[0], offset)
        column_weights = _bicubic_weights(width, new_shape[1], offset)
    weights = (row_weights, column_weights)  # [new side, old side] each
    return np.einsum("ab,cd,bdx->acx", *weights, values, optimize=True)


def _bicubic_weights(old_side, new_side, offset):
    """PyTorch's bicubic interpolation weights along one axis.

    offset: added to `new_side` where it divides `old_side`
    """
    coordinates = (np.arange(new_side) + 0.5) * old_side / (new_side + offset) - 0.5
    nearest_below = np.floor(coordinates).astype(int)
    weights = np.zeros((new_side, old_side))
    a = -0.75  # of Keys' kernel
    for neighbor in (-1, 0, 1, 2):
        distances = np.abs(coordinates - nearest_below - neighbor)
        near_weights = ((a + 2) * distances - (a + 3)) * distances**2 + 1
        far_weights = ((a * distances - 5 * a) * distances + 8 * a) * distances - 4 * a
        neighbor_weights = np.where(distances <= 1, near_weights, far_weights)
        # The border is repeated: neighbors beyond it add to its weight.
        columns = np.clip(nearest_below + neighbor, 0, old_side - 1)
        np.add.at(weights, (np.arange(new_side), columns), neighbor_weights)
    return weights.astype(np.float32)


def _linear_weights(old_side, new_side):
    """Linear interpolation weights with fixed end points."""
    coordinates = np.linspace(0, old_side - 1, new_side)
    distances = np.abs(coordinates[:, None] - np.arange(old_side))
    return np.maximum(0, 1 - distances).astype(np.float32)
