"""Feature maps: a feature for every patch, from the tokens that a reduction left.

    outputs = model.apply(variables, images)
    features = feature_map(outputs, grid=(14, 14), norm=final_norm(variables))

The reductions of a forward pass are undone from the last to the first: patches that
were merged share their token's feature, those of a soft reduction (TokenLearner) are
put together from its tokens, and dropped ones are filled.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from imagepiece_jax.errors import InputError
from imagepiece_jax.models.layers import LayerNorm
from imagepiece_jax.models.vit import Outputs
from imagepiece_jax.reduction.tokens import Masking, Mixing, unmerge

FILLS = ("last", "zero", "class")


def feature_map(
    outputs: Outputs,
    grid: tuple[int, int],
    fill: str = "last",
    norm: Callable[[jax.Array], jax.Array] | None = None,
    fuser: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Features of all patches, row by row. -> [B, *grid, D].

    outputs: what the model returned, of any reduction or of none; grid: (height, width)
    of its patches; fill: the feature of a dropped patch, "last" (that of its token when
    it was dropped), "zero" or "class" (the class token's final feature); norm: function
    of [.., D] for tokens of whatever block (`final_norm`); None leaves the residual
    stream as it is, which is larger in later blocks. fuser: how patches are made of
    tokens that a soft reduction learned, (learned [B, S, D], tokens before it [B, n,
    D]) -> [B, n, D], such as a trained TokenFuser; None: each patch is the mean of the
    learned tokens by the weight that they gave it, normalized per patch. InputError for
    another fill or grid, and for outputs of masked training, where all tokens are left.
    """
    state, steps = outputs.state, list(zip(outputs.results, outputs.taps, strict=True))
    _check(outputs, steps, grid, fill)
    values = state.x[:, state.num_prefix :]
    held = jnp.ones((*values.shape[:2], 1), jnp.float32)  # 0 where a patch was dropped
    for result, taps in reversed(steps):
        if isinstance(result, Mixing):
            values = (fuser or _by_weight(result.matrix))(values, taps.x)
            held = jnp.ones((*values.shape[:2], 1), jnp.float32)
        else:
            own = [(taps.x, result.dest)]
            values = unmerge(values, result.dest, history=own)
            held = unmerge(held, result.dest)
    norm = norm or (lambda x: x)
    values = norm(values)
    if fill != "last":
        filling = norm(state.x[:, :1]) if fill == "class" else jnp.zeros_like(values)
        values = jnp.where(held > 0, values, filling)
    return values.reshape(values.shape[0], *grid, values.shape[2])


def final_norm(variables: Mapping[str, Any]):
    """The norm before the model's head, as a function. [.., D] -> [.., D]."""
    return lambda x: LayerNorm(jnp.float32).apply(
        {"params": variables["params"]["norm"]}, x
    )


def _by_weight(matrix):
    """Fuser that averages learned tokens by the weights that made them [B, S, n]."""

    def fuse(learned, tokens):
        total = jnp.sum(matrix, axis=1, keepdims=True)
        # A token that no learned one took from gets zero, not 0 / 0.
        share = matrix / jnp.where(total > 0, total, 1.0)
        spread = jnp.einsum(
            "bsn,bsd->bnd",
            share,
            learned.astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        return spread.astype(tokens.dtype)

    return fuse


def _check(outputs, steps, grid, fill):
    if fill not in FILLS:
        raise InputError(f"fill is {fill!r}; allowed are {', '.join(FILLS)}")
    if outputs.state.mask is not None or any(isinstance(r, Masking) for r, _ in steps):
        raise InputError(
            "outputs are those of masked training, where no token is gone; allowed are "
            "those of a model made without masked=True"
        )
    if fill == "class" and not outputs.state.num_prefix:
        raise InputError(
            "fill is 'class', but this model has no class token; allowed are last, zero"
        )
    state = outputs.state
    patches = steps[0][1].x.shape[1] if steps else state.x.shape[1] - state.num_prefix
    if grid[0] * grid[1] != patches:
        raise InputError(
            f"grid is {grid[0]}x{grid[1]}, but the model had {patches} patches; "
            f"allowed are grids of {patches}"
        )
