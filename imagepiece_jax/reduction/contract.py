"""Check the contract of methods and reducers: every token has a slot or is dropped.

Nothing crashes when a reducer breaks the contract: it then merges tokens other than the
ones it reports. `check_plan` and `check_form` run whenever a model is made or traced.
`check` needs values, so it runs only after a program.
"""

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.rng import root_key
from imagepiece_jax.errors import InputError
from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.reduction.state import Assignment, Masking, Mixing, ReducerInputs


def check_plan(plan, arch, grid):
    """Check that attention, model and grid meet the needs of a plan's steps.

    arch: an `Architecture`
    grid: (height, width) in patches
    Raises InputError for the first unmet need, with the block.
    """
    lacking = lacking_fields(arch)
    for block, layer in enumerate(plan):
        if layer.step is None:
            continue
        reducer = layer.step.reducer
        for field, part in lacking.items():
            if field in reducer.needs:
                raise InputError(
                    f"{type(reducer).__name__} ranks tokens at block {block} by a "
                    f"score of the {part}, but the model has no {part}; name "
                    "another score"
                )
        if layer.step.site == "pre" and reducer.reads:
            before = plan[block - 1] if block else None
            if before is None or (before.counts and before.step.site != "pre"):
                raise InputError(
                    f"{type(reducer).__name__} at block {block} reads the attention of "
                    "the block before; this block must exist and keep its tokens"
                )
        if layer.counts:
            reducer.check_fits(grid, layer.counts)
            grid = None


def lacking_fields(arch):
    """List a model's missing scores: {field of ReducerInputs: part it would need}."""
    lacking = {}
    if not arch.class_token:
        lacking["cls_attn"] = "class token"
        lacking["cls_and_mean_attn"] = "class token"
    if arch.pool != "map":
        lacking["probe"] = "attention-pooling head"
    return lacking


def check_form(result, counts):
    """Check shapes and types of a reducer's result; arrays may be traced.

    counts: the `block_plan.StepCounts` of the call
    Raises InputError if result and counts contradict.
    """
    n_in = counts.n_in
    n_out = counts.n_out
    if isinstance(result, Assignment):
        if result.n_out != n_out or n_out > n_in:
            raise InputError(
                f"an Assignment of {n_in} tokens has n_out {result.n_out}; it must be "
                f"the counts' n_out, {n_out}, and at most {n_in}"
            )
        if not jnp.issubdtype(result.dest.dtype, jnp.integer):
            raise InputError(f"dest is {result.dest.dtype}; it must be integers")
        _check_shape("dest", result.dest, n_in)
        _check_shape("weight", result.weight, n_in)
        _check_shape("attn_size", result.attn_size, n_in)
    elif isinstance(result, Mixing):
        _check_shape("matrix", result.matrix, n_out, n_in)
        _check_shape("attn_size", result.attn_size, n_out)
    elif isinstance(result, Masking):
        _check_shape("keep", result.keep, n_in)
        tokens = n_in if result.append is None else n_in + 1
        if tokens != n_out:
            raise InputError(f"keep leaves {tokens} tokens; it must leave {n_out}")
    else:
        raise InputError(
            f"a reducer returned a {type(result).__name__}; it must be an Assignment, "
            "a Mixing or a Masking"
        )


def check(result, counts):
    """Check the values of a reducer's result, outside `jax.jit` only.

    Raises InputError, with image, slot or token.
    """
    # Every token has a slot or is dropped, every slot has a token, `index` and `dest`
    # are the same map, and weights are finite.
    check_form(result, counts)
    result = jax.tree.map(np.asarray, result)
    if isinstance(result, Assignment):
        _check_slots(result.dest, result.n_out)
        if result.index is not None:
            _check_index(result.dest, result.index)
    for name in ("weight", "attn_size", "matrix", "keep"):
        values = getattr(result, name, None)
        if values is not None:
            _check_finite(name, values)


def _check_finite(name, values):
    finite = np.isfinite(values.astype(np.float32))
    for image, *index in _first(~finite):
        value = values[image, *index]
        raise InputError(f"image {image}: {name}{index} is {value}")


def check_results(plan, results):
    """`check` the results of a plan's reducing steps (`Outputs.results`).

    Raises InputError for a result that breaks the contract, with the step's block.
    """
    steps = [(block, layer) for block, layer in enumerate(plan) if layer.counts]
    for (block, layer), result in zip(steps, results, strict=True):
        try:
            check(result, layer.counts)
        except InputError as error:
            reducer = type(layer.step.reducer).__name__
            raise InputError(f"block {block}, {reducer}: {error}") from error


def random_inputs(reducer, n, embed_dim, num_heads):
    """Make random ReducerInputs: two images with `n` tokens."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, n, embed_dim)), jnp.float32)
    size = jnp.asarray(rng.integers(1, 4, size=(2, n)), jnp.float32)
    scores = jax.nn.softmax(x[..., 0])
    key = x[..., : embed_dim // num_heads]
    of_token = reducer.metric in ("token", "input")
    return ReducerInputs(
        x=x,
        size=size,
        attn_size=size,
        metric=x if of_token else key,
        key=key,
        cls_attn=scores,
        mean_attn=scores,
        cls_and_mean_attn=scores,
        attn_columns=scores,
        shift=scores,
        probe=scores,
        rng=jax.random.split(root_key(0), 2),
        num_heads=num_heads,
    )


def _check_shape(name, array, *sizes):
    if array is not None and array.shape[1:] != sizes:
        listed = ", ".join(map(str, sizes))
        raise InputError(f"{name} has shape {array.shape}; it must be [B, {listed}]")


def _first(wrong):
    """Locate an array's first True: a list with one index, or an empty list."""
    return [index.tolist() for index in np.argwhere(wrong)[:1]]


def _check_slots(dest, n_out):
    """Check that slots are in range, and not empty."""
    outside = (dest < 0) | (dest >= n_out)
    for image, token in _first(outside & (dest != DROPPED)):
        raise InputError(
            f"image {image}: token {token} goes to slot {dest[image, token]}; it must "
            f"be 0 to {n_out - 1}, or {DROPPED} for a dropped token"
        )
    slots = np.arange(n_out)[None, :, None]
    filled = (dest[:, None, :] == slots).any(axis=-1)
    for image, slot in _first(~filled):
        raise InputError(f"image {image}: slot {slot} of {n_out} gets no token")


def _check_index(dest, index):
    """Check that `index` and `dest` are the same map, and that partners stay."""
    tokens = np.concatenate([index.kept_tokens, index.absorbed_tokens], axis=1)
    kept = np.broadcast_to(
        np.arange(index.kept_tokens.shape[1]), index.kept_tokens.shape
    )
    slots = np.concatenate([kept, index.target_slots], axis=1)
    inside = np.clip(tokens, 0, dest.shape[1] - 1)
    differ = np.take_along_axis(dest, inside, axis=1) != slots
    for image, number in _first(differ | (inside != tokens)):
        raise InputError(
            f"image {image}: token {tokens[image, number]} is in slot "
            f"{slots[image, number]} of index, but in another slot of dest"
        )
    times = (tokens[:, :, None] == np.arange(dest.shape[1])).sum(axis=1)
    for image, token in _first(times != (dest != DROPPED)):
        raise InputError(
            f"image {image}: token {token} of slot {dest[image, token]} is "
            f"{times[image, token]} times in index"
        )
    kept = np.take_along_axis(index.kept_tokens, index.target_slots, axis=1)
    partner = np.broadcast_to(index.partner_tokens, kept.shape)
    for image, number in _first(kept != partner):
        raise InputError(
            f"image {image}: slot {index.target_slots[image, number]} keeps token "
            f"{kept[image, number]}, but index.partner_tokens has "
            f"{partner[image, number]}; a token may merge into a leaving token"
        )
