"""What encoders are used for: pooled vectors, patch features, intermediate layers.

    maps = features(vit, images, layers=4)
    maps.pooled, maps.patches, maps.layers[0].patches

Patches are followed through the reductions of a forward pass, so that every one has a
feature: patches that were merged share that of their token, those of a soft reduction
(TokenLearner) are put together from its tokens, and dropped ones are filled.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors
from flax import linen as nn

from imagepiece_jax.common import xla_options
from imagepiece_jax.common.fields import is_whole
from imagepiece_jax.common.progress import working
from imagepiece_jax.data.normalize import as_normalized, check_images, warn_of_range
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.block import Block
from imagepiece_jax.models.config import patch_grid, reduced
from imagepiece_jax.models.layers import LayerNorm
from imagepiece_jax.models.pretrained import Pretrained, takes_pretrained
from imagepiece_jax.models.variables import check_variables
from imagepiece_jax.models.vit import Outputs, ViT
from imagepiece_jax.reduction.ops import gather_rows, invert
from imagepiece_jax.reduction.provenance import compose
from imagepiece_jax.reduction.settings import as_tuple
from imagepiece_jax.reduction.tokens import (
    DROPPED,
    Masking,
    Mixing,
    mean_by,
    sum_by_slot,
    to_nearest_kept,
)

FILLS = ("nearest", "last", "zero", "class")


class Layer(NamedTuple):
    """A feature for every patch after one block.

    Without `reshape` h and w are one axis.
    """

    patches: jax.Array  # [B, h, w, D]
    prefix: jax.Array  # [B, P, D], class, distillation and register tokens
    dropped: jax.Array  # [B, h, w] bool, patches whose token was dropped up to there


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


class TokenList(NamedTuple):
    """The image tokens that a model ends with, row by row of where they stand.

    Tokens that were mixed of all patches (TokenLearner) have a size of 1, no patch is
    in only one of them, and they stand at the mean of the patches by their weights.
    """

    tokens: jax.Array  # [B, K, D], after the last norm
    size: jax.Array  # [B, K] float32, the patches in each
    source: jax.Array  # [B, h, w] int32, the token that a patch is in, or -1, none
    coordinates: jax.Array  # [B, K, 2] float32, (row, column), middle of the patches


@takes_pretrained
def features(
    vit: Pretrained,
    images: jax.Array | np.ndarray,
    *,
    layers: int | Sequence[int] = (),
    norm: bool = True,
    reshape: bool = True,
    fill: str = "nearest",
    fuser: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    tokens: int | None = None,
) -> Features:
    """Features of images, of a model with any reduction or none; compiled once.

    images: [B, H, W, 3] floats, normalized with the model's mean and std, or uint8,
    which is normalized so here
    layers: of the last so many blocks, or of blocks by their index from 0
    norm: whether these pass the model's last norm
    reshape: patches as a grid, else as a list
    fill: what a dropped patch gets, "nearest" (the feature of the kept token that is
    most like it), "last" (its own when it was dropped), "zero" or "class"
    fuser: makes patches of learned tokens, (learned [B, S, D], tokens before them
    [B, n, D]) -> [B, n, D]; None: each is a weighted mean of the learned tokens
    tokens: how many image tokens any reduction is to leave, exactly, which are then
    returned; None: as many as it leaves, and none are
    Returns Features: the pooled vector, patches, prefix tokens, which patches were
    dropped, the same after each of `layers`, and with `tokens` a TokenList.
    Raises InputError for what does not fit.
    Source: `layers` is as in DINOv2's get_intermediate_layers (Oquab et al., 2024).
    """
    model, variables, size = leaving(vit, tokens), vit.variables, vit.image_size
    depth = len(model.plan)
    last = is_whole(layers) and 0 <= layers <= depth
    blocks = range(depth - layers, depth) if last else layers
    blocks = tuple(blocks) if isinstance(blocks, Sequence) else (None,)
    if not all(is_whole(block) and 0 <= block < depth for block in blocks):
        allowed = f"0 to {depth} for the last blocks, or blocks from 0 to {depth - 1}"
        raise InputError(field="layers", value=layers, allowed=allowed)
    for name, value in (("norm", norm), ("reshape", reshape)):
        if not isinstance(value, bool):
            raise InputError(field=name, value=value, allowed="True, False")
    _check_fill(fill, model.arch.class_token)
    if fuser is not None and not (callable(fuser) and _has_hash(fuser)):
        allowed = "functions with a hash, such as one that calls TokenFuser().apply"
        raise InputError(field="fuser", value=fuser, allowed=allowed)
    xla_options.check_dtype(model.dtype.name)
    check_images(images, size, pixels=True)
    warn_of_range(images, model.mean, model.std)
    try:
        with working("compiling the features"):  # later calls only start the program
            return _extract(
                variables,
                images,
                model,
                blocks,
                norm,
                reshape,
                fill,
                fuser,
                tokens is not None,
            )
    except errors.FlaxError:
        check_variables(model, variables, size)
        raise


@functools.partial(
    jax.jit,
    static_argnames=("model", "blocks", "norm", "reshape", "fill", "fuser", "listed"),
)
def _extract(variables, images, model, blocks, norm, reshape, fill, fuser, listed):
    states = {}

    def note(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(context.module, Block):
            states[context.module.index] = out[0]
        return out

    images = as_normalized(images, model.mean, model.std)
    with nn.intercept_methods(note):
        outputs = model.apply(variables, images)
    grid = patch_grid(images.shape[1:3], model.patch_size, cut=True)
    last = final_norm(model, variables)
    done = np.cumsum([bool(layer.counts) for layer in model.plan])
    _check(outputs, grid)
    paths = _paths(outputs, fill)

    @functools.cache  # the last block may be asked for, too
    def layer(block, norm):
        path = paths[done[block]]
        prefix, patches, dropped = _mapped(states[block], path, fill, norm, fuser)
        if reshape:
            patches, dropped = (
                a.reshape(-1, *grid, *a.shape[2:]) for a in (patches, dropped)
            )
        return Layer(patches, prefix, dropped)

    whole = layer(len(model.plan) - 1, last)
    layers = tuple(layer(block, last if norm else None) for block in blocks)
    tokens = ()
    if listed:
        tokens = token_list(outputs, grid, last)
    return Features(outputs.pooled, *whole, layers, *tokens)


def leaving(vit: Pretrained, tokens: int | None) -> ViT:
    """The model with as many image tokens in the end as asked for, exactly.

    Its schedule is at the strength that leaves the next more, and its last step then
    leaves `tokens`. Where no strength leaves as many, the steps of the nearest one stop
    there. Parameters are the same.

    tokens: from 1 to the patches of an image; None: the model as it is
    Raises InputError for a number that the reduction cannot leave.
    """
    if tokens is None:
        return vit.model
    if vit.reduction is None:
        problem = f"is {tokens!r}, but the model has no record of its reduction"
        hint = 'make it by Pretrained(model, variables, reduction={"name": ..})'
        raise InputError(problem, field="tokens", value=tokens, hint=hint)
    fields = tuple((k, as_tuple(v)) for k, v in vit.reduction.items())
    grid = patch_grid(vit.image_size, vit.model.patch_size, cut=True)
    # Not cached where True is 1, and lists have no hash: they are refused.
    make = _reduced if is_whole(tokens) else _reduced.__wrapped__
    model = make(vit.model, fields, grid, vit.name, tokens)
    steps = [layer.step for layer in model.plan if layer.step]
    if any(isinstance(step.reducer, nn.Module) for step in steps):
        try:
            check_variables(model, vit.variables, vit.image_size)
        except InputError as error:
            check_variables(vit.model, vit.variables, vit.image_size)
            name = vit.reduction["name"]
            problem = f"is {tokens}, but {name!r} has learned weights of another number"
            hint = f"{error}"
            raise InputError(
                problem, field="tokens", value=tokens, hint=hint
            ) from error
    return model


@functools.lru_cache(maxsize=32)
def _reduced(model, fields, grid, name, tokens):
    return reduced(model, dict(fields), grid, name, model.prop_attn, tokens=tokens)


def token_list(
    outputs: Outputs,
    grid: tuple[int, int],
    norm: Callable[[jax.Array], jax.Array] | None = None,
) -> TokenList:
    """The image tokens of a forward pass as a TokenList.

    outputs: what the model returned, of any reduction or of none
    grid: (height, width) of its patches
    norm: as for `feature_map`
    Raises InputError for another grid, and for outputs of masked training.
    """
    _check(outputs, grid)
    state, path = outputs.state, _paths(outputs)[-1]
    batch, total, _ = state.x.shape
    count, patches = total - state.num_prefix, grid[0] * grid[1]
    row, column = _centers(path, count, batch, grid)
    earlier = (row[:, None, :] < row[:, :, None]) | (
        (row[:, None, :] == row[:, :, None]) & _before(column)
    )
    place = jnp.sum(earlier, axis=-1, dtype=jnp.int32)
    order = invert(place, count)
    if path.mixed:
        source = jnp.full((batch, patches), DROPPED, jnp.int32)
    elif path.slot is None:
        source = place
    else:
        source = compose(place, path.slot)
    tokens = (norm or (lambda x: x))(state.x[:, state.num_prefix :])
    return TokenList(
        tokens=gather_rows(tokens, order),
        size=gather_rows(state.size[:, state.num_prefix :], order),
        source=source.reshape(batch, *grid),
        coordinates=gather_rows(jnp.stack([row, column], axis=-1), order),
    )


def _before(values):
    """Whether the other of two tokens stands before, ties by index. -> [B, n, n]."""
    mine, other = values[:, :, None], values[:, None, :]
    index = np.arange(values.shape[1])
    first = (index[None, :] < index[:, None])[None]
    return (other < mine) | ((other == mine) & first)


def _centers(path, count, batch, grid):
    """Rows and columns of `count` tokens, the means of their patches, [B, count] each.

    The sums are of whole numbers, so tokens at the same place have equal ones.
    """
    if path.mixed:
        before, mixing, x = path.mixed
        places = _centers(before, x.shape[1], batch, grid)
        weight = mixing.matrix.astype(jnp.float32)
        mixed = mean_by(weight, jnp.stack(places, axis=-1))
        places = mixed[..., 0], mixed[..., 1]
    else:
        places = np.indices(grid, np.float32).reshape(2, 1, -1)
        places = [jnp.broadcast_to(axis, (batch, axis.size)) for axis in places]
    if path.slot is None:
        return places
    size = sum_by_slot(jnp.ones_like(places[0]), path.slot, count)
    return [sum_by_slot(axis, path.slot, count) / size for axis in places]


def feature_map(
    outputs: Outputs,
    grid: tuple[int, int],
    fill: str = "nearest",
    norm: Callable[[jax.Array], jax.Array] | None = None,
    fuser: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Features of all patches, row by row.

    outputs: what the model returned, of any reduction or of none
    grid: (height, width) of its patches
    fill: the feature of a dropped patch, "nearest" (the final one of the kept token
    most like its own at the step that dropped it, by cosine), "last" (that of its token
    then), "zero" or "class" (the final feature of the first prefix token, which is the
    class token where there is one)
    norm: function of [.., D] for tokens of whatever block (`final_norm`); None leaves
    the residual stream as it is, which is larger in later blocks
    fuser: how patches are made of tokens that a soft reduction learned, (learned [B, S,
    D], tokens before it [B, n, D]) -> [B, n, D], such as a trained TokenFuser; None:
    each patch is the mean of the learned tokens by the weight that they gave it,
    normalized per patch
    Returns [B, *grid, D].
    Raises InputError for another fill or grid, and for outputs of masked training,
    where all tokens are left.
    """
    _check_fill(fill, outputs.state.num_prefix)
    _check(outputs, grid)
    path = _paths(outputs, fill)[-1]
    _, values, _ = _mapped(outputs.state, path, fill, norm, fuser)
    return values.reshape(values.shape[0], *grid, values.shape[2])


class _Path(NamedTuple):
    """Which token each patch is in after some steps, and what it reads there.

    Followed from the first step on, so that the maps of all blocks share it. After a
    Mixing a path starts anew, from the tokens that it made.

    slot: [B, n], or DROPPED; None before the first step
    read: [B, n], the slot that a patch has its feature of; dropped ones may have one
    last: [B, n, D], of dropped patches, what their token was then; None: not asked for
    mixed: the path before the Mixing, the Mixing and the tokens before it, or None
    """

    slot: jax.Array | None = None
    read: jax.Array | None = None
    last: jax.Array | None = None
    mixed: tuple | None = None


def _paths(outputs, fill=None):
    """A _Path for before the first step, and one for after each.

    fill: None where no features of dropped patches are wanted
    """
    paths = [_Path()]
    for result, taps in zip(outputs.results, outputs.taps, strict=True):
        paths.append(_followed(paths[-1], result, taps.x, fill))
    return paths


def _followed(path, result, x, fill):
    """`path` after one more step, of tokens `x`."""
    if isinstance(result, Mixing):
        return _Path(mixed=(path, result, x))
    slot = _compose(result.dest, path.slot)
    if fill == "nearest":
        read = _compose(to_nearest_kept(x, result), path.read)
        return path._replace(slot=slot, read=read)
    last = None
    if fill == "last" or path.mixed:
        last = _read(x, path.slot)
        if path.slot is not None:
            last = jnp.where((path.slot == DROPPED)[..., None], path.last, last)
    return path._replace(slot=slot, read=slot, last=last)


def _compose(outer, inner):
    return outer if inner is None else compose(outer, inner)


def _read(values, slot):
    """Rows of [B, n, D], all of them where `slot` is None."""
    return values if slot is None else gather_rows(values, jnp.maximum(slot, 0))


def _mapped(state, path, fill, norm, fuser):
    """Prefix tokens [B, P, D], patches [B, h w, D] and which were dropped, [B, h w]."""
    prefix, values = jnp.split(state.x, [state.num_prefix], axis=1)
    while True:
        gone = jnp.zeros(values.shape[:2], bool)
        if path.slot is not None:
            gone, values = path.slot == DROPPED, _read(values, path.read)
        if path.last is not None:
            values = jnp.where(gone[..., None], path.last, values)
        if path.mixed is None:
            break
        path, mixing, x = path.mixed
        fused = (fuser or _by_weight(mixing.matrix))(values, x)
        if jnp.shape(fused) != x.shape:
            shape = [*jnp.shape(fused)]
            problem = f"makes an array {shape} of learned tokens {[*values.shape]}"
            allowed = f"{[*x.shape]}, a feature of each token before them"
            raise InputError(problem, field="fuser", value=shape, allowed=allowed)
        values = fused
    if fill == "class":
        values = jnp.where(gone[..., None], prefix[:, :1], values)
    if norm:  # once for both: every call is more to compile
        both = norm(jnp.concatenate([prefix, values], axis=1))
        prefix, values = jnp.split(both, [state.num_prefix], axis=1)
    if fill == "zero":
        values = jnp.where(gone[..., None], 0, values)
    return prefix, values, gone


def final_norm(
    model: ViT, variables: Mapping[str, Any]
) -> Callable[[jax.Array], jax.Array]:
    """The norm of all tokens before the head, as a function. [.., D] -> [.., D].

    In a model without one there, such as those whose pooled vector is normed, it leaves
    tokens as they are.
    """
    if not model.arch.final_norm:
        return lambda x: x
    norm = LayerNorm(jnp.float32, model.arch.norm_eps)
    return lambda x: norm.apply({"params": variables["params"]["norm"]}, x)


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


def _check_fill(fill, class_token):
    if fill == "class" and not class_token:
        problem = "is 'class', but this model has no class token"
        allowed = ", ".join(name for name in FILLS if name != fill)
        raise InputError(problem, field="fill", value=fill, allowed=allowed)
    if fill not in FILLS:
        raise InputError(field="fill", value=fill, allowed=", ".join(FILLS))


def _has_hash(function):
    """Whether XLA's programs can be told apart by it; a bound Flax module has none."""
    try:
        hash(function)
    except Exception:  # of whatever kind its class raises
        return False
    return True


def _check(outputs, grid):
    if outputs.state.mask is not None or any(
        isinstance(result, Masking) for result in outputs.results
    ):
        problem = "are those of masked training, where no token is gone"
        allowed = "those of a model made without masked=True"
        raise InputError(problem, field="outputs", allowed=allowed)
    state = outputs.state
    first = outputs.taps[0].x if outputs.taps else state.x[:, state.num_prefix :]
    patches = first.shape[1]
    if grid[0] * grid[1] != patches:
        problem = f"is {grid[0]}x{grid[1]}, but the model had {patches} patches"
        allowed = f"grids of {patches}"
        raise InputError(problem, field="grid", value=grid, allowed=allowed)
