"""Image features: pooled vectors, patch features, intermediate layers.

    maps = features(vit, images, layers=4)
    maps.pooled, maps.patches, maps.layers[0].patches

Every patch has a feature, because patches are followed through the model's reductions.
Patches in a merged token share its feature. After a soft reduction (TokenLearner) a
patch is a mean of the learned tokens. `fill` chooses the feature of dropped patches.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagepiece_jax.common import xla_options
from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.common.progress import announced_work
from imagepiece_jax.data import normalize, pictures
from imagepiece_jax.errors import InputError
from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.models.pretrained import Pretrained, check_loaded
from imagepiece_jax.models.vit import Outputs, ViT, final_norm, on_auto_axes
from imagepiece_jax.reduction.provenance import follow_patches, gather_tokens
from imagepiece_jax.reduction.state import Masking

FILL_CHOICES = ("nearest", "last")
FILE_BATCH_SIZE = 64

Norm = Callable[[jax.Array], jax.Array]


class Layer(NamedTuple):
    """Patch features after one block."""

    patches: jax.Array  # [B, h, w, D]
    prefix: jax.Array  # [B, P, D]: class, distillation and register tokens
    dropped: jax.Array  # [B, h, w] bool: dropped in this block or before


class Features(NamedTuple):
    """The result of `features`."""

    pooled: jax.Array  # [B, D]: the input of the model's head
    # After the final norm, with the shapes of a Layer:
    patches: jax.Array
    prefix: jax.Array
    dropped: jax.Array
    layers: tuple[Layer, ...]  # the requested blocks, in the order of the request


def features(
    vit: Pretrained,
    images: Any,
    *,
    layers: int | Sequence[int] = (),
    norm: bool = True,
    fill: str = "nearest",
) -> Features:
    """Compute image features with a model, with any reduction or none.

    The first call with a setting compiles a program, which later calls run.

    images: [B, H, W, 3] floats, normalized with the model's mean and std, or uint8,
        which is normalized here; or anything `Predictor` takes (paths, PIL images, a
        folder, ..), which `vit.preprocessing` crops. More than 64 files are computed
        in batches, and their features are NumPy arrays
    layers: number of last blocks, or block indices from 0
    norm: whether `layers` get the final norm
    fill: feature of a dropped patch: "nearest", the most similar kept token's; or
        "last", its own when it was dropped
    Source: `layers` as in DINOv2's get_intermediate_layers (Oquab et al., 2024).
    """
    check_loaded(vit)
    if isinstance(images, pictures.AnyPath):
        images, _ = pictures.list_pictures(images)
    is_long = isinstance(images, list | tuple) and len(images) > FILE_BATCH_SIZE
    if is_long and all(isinstance(image, pictures.AnyPath) for image in images):
        return _batched_features(vit, images, layers=layers, norm=norm, fill=fill)
    model = vit.model
    requested_blocks = layers
    if not np.iterable(layers):
        check_range("layers", layers, 0, model.depth, whole=True)
        requested_blocks = range(model.depth - layers, model.depth)
    # Whole numbers of Python, which have a hash for jit.
    block_indices = tuple(np.asarray(requested_blocks).tolist())
    for block_index in block_indices:
        check_range("layers", block_index, 0, model.depth - 1, whole=True)
    check_choice("fill", fill, FILL_CHOICES)
    xla_options.check_dtype(model.execution.dtype.name)
    images = pictures.as_batch(images, vit.preprocessing)
    normalize.check_images(images, vit.image_size, takes_pixels=True)
    normalize.warn_if_unnormalized(images, vit.config.mean, vit.config.std)
    variables = vit.variables
    if not isinstance(images, jax.core.Tracer):  # a tracer is on no device
        images = jax.device_put(images)
        variables = vit.device_variables
    # Only a setting's first call compiles; later calls just start the program.
    with announced_work("compiling the features"):
        return _extract_features(variables, images, model, (block_indices, norm, fill))


def _batched_features(pretrained, files, **options):
    """Compute features for files in batches, as NumPy arrays: memory stays bounded."""
    # Copies of the last file fill the last batch, so that one program serves all.
    num_files = len(files)
    padded_files = [*files, *files[-1:] * (-num_files % FILE_BATCH_SIZE)]
    results = []
    for start in range(0, num_files, FILE_BATCH_SIZE):
        batch_files = padded_files[start : start + FILE_BATCH_SIZE]
        results.append(jax.device_get(features(pretrained, batch_files, **options)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:num_files], *results)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _extract_features(variables, images, model, options):
    extract = make_features_function(model, *options)
    return on_auto_axes(extract, images)(variables, images)


def make_features_function(
    model: ViT, blocks: Sequence[int] = (), norm: bool = True, fill: str = "nearest"
) -> Callable[[Mapping[str, Any], jax.Array], Features]:
    """Return a function: (variables, images) -> Features, with `features`' options.

    blocks: block indices from 0
    """

    def extract(variables, images):
        images = model.config.as_normalized(images)
        outputs = model.apply(variables, images, with_states=True)
        last_norm = final_norm(model, variables)
        _check_outputs(outputs)
        patch_paths = follow_patches(outputs.results, outputs.reducer_inputs, fill)
        # Reduction steps up to every block: the index of its path in `patch_paths`.
        steps_so_far = np.cumsum([bool(planned.counts) for planned in model.plan])

        @functools.cache  # the last block may be among `blocks`, too
        def layer_features(block_index, given_norm):
            patch_path = patch_paths[steps_so_far[block_index]]
            layer = _patch_features(outputs.states[block_index], patch_path, given_norm)
            return _as_maps(layer, model.config.grid)

        final_layer = layer_features(model.depth - 1, last_norm)
        requested_norm = last_norm if norm else None
        layers = tuple(layer_features(index, requested_norm) for index in blocks)
        return Features(outputs.pooled, *final_layer, layers)

    return extract


def feature_map(
    outputs: Outputs,
    grid: tuple[int, int],
    fill: str = "nearest",
    norm: Norm | None = None,
) -> Float[Array, "batch {grid[0]} {grid[1]} dim"]:
    """Compute the features of all patches as a grid.

    After a soft reduction (TokenLearner) a patch is the mean of the learned tokens,
    weighted by how much they took from it.

    grid: (height, width) in patches
    fill: feature of a dropped patch: "nearest", the token with the largest cosine to
        the patch's token at the dropping step; or "last", the patch's token then
    norm: applied to tokens [.., D] (`final_norm`); None: the residual stream, which
        grows from block to block
    Raises InputError for outputs of masked training.
    """
    check_choice("fill", fill, FILL_CHOICES)
    _check_outputs(outputs)
    # [-1]: after all steps.
    patch_path = follow_patches(outputs.results, outputs.reducer_inputs, fill)[-1]
    return _as_maps(_patch_features(outputs.state, patch_path, norm), grid).patches


def _as_maps(layer, grid):
    """A Layer of maps [B, h, w, ..] from a Layer of lists [B, h w, ..]."""
    patches = layer.patches.reshape(-1, *grid, layer.patches.shape[2])
    return Layer(patches, layer.prefix, layer.dropped.reshape(-1, *grid))


def _patch_features(state, patch_path, norm):
    """Map a state's tokens to a Layer with lists of patches."""
    prefix, vectors = jnp.split(state.x, [state.num_prefix], axis=1)  # [B, tokens, D]
    # Walk from the tokens back to the patches: one turn per soft reduction on the way.
    while True:
        is_dropped = jnp.zeros(vectors.shape[:2], bool)
        if patch_path.token_of_patch is not None:
            is_dropped = patch_path.token_of_patch == DROPPED
            vectors = gather_tokens(vectors, patch_path.source_token)
        if patch_path.last_feature is not None:
            is_dropped_row = is_dropped[..., None]  # [B, patches, 1], for all channels
            vectors = jnp.where(is_dropped_row, patch_path.last_feature, vectors)
        if patch_path.before_mixing is None:
            break
        patch_path, mixing, tokens_before = patch_path.before_mixing
        # An input gets the learned tokens' mean, weighted by how much they took from
        # it; an input that no learned token used gets 0, not 0 / 0. The matrix is
        # [B, s, n]: s learned tokens, n inputs.
        weight_sum = jnp.sum(mixing.matrix, axis=1, keepdims=True)
        shares = mixing.matrix / jnp.where(weight_sum > 0, weight_sum, 1.0)
        # In float32, like the mixing itself.
        vectors = vectors.astype(jnp.float32)
        vectors = jnp.einsum("bsn,bsd->bnd", shares, vectors, precision="highest")
        vectors = vectors.astype(tokens_before.dtype)
    if norm:  # one norm over prefix and patches compiles faster than two
        normalized_tokens = norm(jnp.concatenate([prefix, vectors], axis=1))
        prefix, vectors = jnp.split(normalized_tokens, [state.num_prefix], axis=1)
    return Layer(vectors, prefix, is_dropped)


def _check_outputs(outputs):
    has_masks = any(isinstance(result, Masking) for result in outputs.results)
    if outputs.state.mask is not None or has_masks:
        raise InputError("outputs come from masked training")
