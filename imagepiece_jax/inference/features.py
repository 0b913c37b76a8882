"""Features of images: pooled vectors, patch features, intermediate layers.

    maps = features(vit, images, layers=4)
    maps.pooled, maps.patches, maps.layers[0].patches

Patches are followed through the reductions of a forward pass, so that every one has a
feature: merged patches share that of their token, those of a soft reduction
(TokenLearner) are put together from its tokens, and dropped ones are filled.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors

from imagepiece_jax.common import xla_options
from imagepiece_jax.common.fields import is_integer
from imagepiece_jax.common.image_size import patch_grid
from imagepiece_jax.common.progress import working
from imagepiece_jax.data import pictures
from imagepiece_jax.data.normalize import as_normalized, check_images, warn_of_range
from imagepiece_jax.errors import InputError, one_of, short_traceback
from imagepiece_jax.inference.token_list import check_outputs, token_list
from imagepiece_jax.models.pretrained import Pretrained, check_pretrained
from imagepiece_jax.models.variables import check_variables
from imagepiece_jax.models.vit import Outputs, final_norm, with_states
from imagepiece_jax.reduction.provenance import follow, rows_of
from imagepiece_jax.reduction.tokens import DROPPED

# The first two by reduction.provenance, the others here.
FILLS = ("nearest", "last", "zero", "class")


class Layer(NamedTuple):
    """A feature for every patch after one block."""

    patches: jax.Array  # [B, h, w, D]; [B, h w, D] without `reshape`
    prefix: jax.Array  # [B, P, D], class, distillation and register tokens
    dropped: jax.Array  # [B, h, w] bool, patches whose token was dropped before


class Features(NamedTuple):
    """The result of `features`."""

    pooled: jax.Array  # [B, D], the input of the model's head
    patches: jax.Array  # these three as in a Layer, after the last norm
    prefix: jax.Array
    dropped: jax.Array
    layers: tuple[Layer, ...]  # of the requested blocks, in their order
    tokens: jax.Array | None = None  # these four as in a TokenList, on request
    size: jax.Array | None = None
    source: jax.Array | None = None
    coordinates: jax.Array | None = None


@short_traceback
def features(
    vit: Pretrained,
    images: Any,
    *,
    layers: int | Sequence[int] = (),
    norm: bool = True,
    reshape: bool = True,
    fill: str = "nearest",
    tokens: int | None = None,
) -> Features:
    """Features of images from a model with any reduction or none; compiled once.

    images: [B, H, W, 3] floats, normalized with the model's mean and std, or uint8,
        which is normalized here; or one image or several as `Predictor` takes them
        (paths, PIL images, ..), which `vit.preprocessing` crops
    layers: number of last blocks, or indices of blocks from 0
    norm: whether the features of `layers` pass the model's last norm
    reshape: patches as a grid, else as a list
    fill: the feature of a dropped patch, "nearest" (the one of the most similar kept
        token), "last" (its own when it was dropped), "zero" or "class"
    tokens: exact number of image tokens that the reduction leaves, which are then
        returned; None: the reduction's own, and none are returned
    Raises InputError for arguments that do not fit.
    Source: `layers` is as in DINOv2's get_intermediate_layers (Oquab et al., 2024).
    """
    check_pretrained(vit)
    model = vit.model_with_tokens(tokens)
    size = vit.image_size
    blocks = chosen_blocks(layers, model.depth)
    for name, value in (("norm", norm), ("reshape", reshape)):
        if not isinstance(value, bool):  # 1 == True
            raise InputError(field=name, value=value, allowed="True, False")
    check_fill(fill, model.arch.class_token)
    xla_options.check_dtype(model.dtype.name)
    images = pictures.as_batch(images, vit.preprocessing)
    check_images(images, size, pixels=True)
    warn_of_range(images, model.mean, model.std)
    listed = tokens is not None
    try:
        with working("compiling the features"):  # later calls only start the program
            return _extract(
                vit.variables, images, model, blocks, norm, reshape, fill, listed
            )
    except errors.FlaxError:
        check_variables(model, vit.variables, size)
        raise


@functools.partial(
    jax.jit,
    static_argnames=("model", "blocks", "norm", "reshape", "fill", "listed"),
)
def _extract(variables, images, model, blocks, norm, reshape, fill, listed):
    run = forward(model, blocks, norm, reshape, fill, listed)
    return run(variables, images)


def forward(model, blocks, norm=True, reshape=True, fill="nearest", listed=False):
    """(variables, images) -> Features, with the arguments of `features`.

    blocks: indices from 0
    listed: whether the Features have the fields of a TokenList
    """

    def extract(variables, images):
        images = as_normalized(images, model.mean, model.std)
        outputs, states = with_states(model, variables, images)
        grid = patch_grid(images.shape[1:3], model.patch_size, cut=True)
        last_norm = final_norm(model, variables)
        steps = np.cumsum([bool(layer.counts) for layer in model.plan])
        check_outputs(outputs, grid)
        paths = follow(outputs.results, outputs.taps, fill)

        @functools.cache  # `blocks` may have the last one, too
        def layer(block, norm):
            path = paths[steps[block]]
            prefix, patches, dropped = _mapped(states[block], path, fill, norm)
            if reshape:
                patches = patches.reshape(-1, *grid, *patches.shape[2:])
                dropped = dropped.reshape(-1, *grid, *dropped.shape[2:])
            return Layer(patches, prefix, dropped)

        final = layer(model.depth - 1, last_norm)
        norm_of_layers = last_norm if norm else None
        layers = tuple(layer(block, norm_of_layers) for block in blocks)
        result = Features(outputs.pooled, *final, layers)
        if not listed:
            return result
        tokens = token_list(outputs, grid, last_norm)
        return result._replace(**tokens._asdict())

    return extract


def feature_map(
    outputs: Outputs,
    grid: tuple[int, int],
    fill: str = "nearest",
    norm: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Features of all patches, row by row.

    A patch of learned tokens is their mean by the weight that they gave it, normalized
    per patch.

    outputs: of a model with any reduction or none
    grid: (height, width) of its patches
    fill: the feature of a dropped patch, "nearest" (the final one of the kept token
        most like its own at the step that dropped it, by cosine), "last" (that of its
        token then), "zero" or "class" (the final feature of the first prefix token,
        which is the class token where there is one)
    norm: function of [.., D] for tokens of any block (`final_norm`); None: the residual
        stream, which is larger in later blocks
    Returns [B, *grid, D].
    Raises InputError for another fill or grid, and for outputs of masked training.
    """
    check_fill(fill, outputs.state.num_prefix)
    check_outputs(outputs, grid)
    path = follow(outputs.results, outputs.taps, fill)[-1]
    _, values, _ = _mapped(outputs.state, path, fill, norm)
    return values.reshape(values.shape[0], *grid, values.shape[2])


def _mapped(state, path, fill, norm):
    """Prefix tokens [B, P, D], patches [B, h w, D] and which were dropped, [B, h w]."""
    prefix, values = jnp.split(state.x, [state.num_prefix], axis=1)
    while True:
        gone = jnp.zeros(values.shape[:2], bool)
        if path.slot is not None:
            gone = path.slot == DROPPED
            values = rows_of(values, path.read)
        if path.last is not None:
            values = jnp.where(gone[..., None], path.last, values)
        if path.mixed is None:
            break
        path, mixing, x = path.mixed
        values = _spread(values, mixing.matrix).astype(x.dtype)
    if fill == "class":
        values = jnp.where(gone[..., None], prefix[:, :1], values)
    if norm:  # once for both: every call is more to compile
        both = norm(jnp.concatenate([prefix, values], axis=1))
        prefix, values = jnp.split(both, [state.num_prefix], axis=1)
    if fill == "zero":
        values = jnp.where(gone[..., None], 0, values)
    return prefix, values, gone


def _spread(learned, matrix):
    """Means of learned tokens [B, S, D] by the weights that made them. -> [B, n, D].

    matrix: [B, S, n]
    """
    total = jnp.sum(matrix, axis=1, keepdims=True)
    # A token that no learned one took from gets zero, not 0 / 0.
    total = jnp.where(total > 0, total, 1.0)
    share = matrix / total
    return jnp.einsum(
        "bsn,bsd->bnd",
        share,
        learned.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def chosen_blocks(layers: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """Blocks from 0 that `layers` of `features` names. Raises InputError for others."""
    blocks = layers
    if is_integer(layers) and 0 <= layers <= depth:
        blocks = range(depth - layers, depth)
    listed = isinstance(blocks, Sequence)
    if not listed or not all(is_integer(b) and 0 <= b < depth for b in blocks):
        raise InputError(
            field="layers",
            value=layers,
            allowed=(
                f"a number of last blocks from 0 to {depth}, or blocks from 0 to "
                f"{depth - 1}"
            ),
        )
    return tuple(blocks)


def check_fill(fill: str, class_token: bool) -> None:
    """Raise InputError for a fill that is unknown, or of a class token that is not."""
    if fill == "class" and not class_token:
        raise InputError(
            "is 'class', but this model has no class token",
            field="fill",
            value=fill,
            allowed=", ".join(name for name in FILLS if name != fill),
        )
    one_of("fill", fill, FILLS)
