"""Check the contract of methods and reducers: every token has a slot or is dropped.

Nothing crashes when a reducer breaks the contract: it then merges tokens other than the
ones it reports. `check_plan` and `check_form` run whenever a model is made or traced.
`check_values` needs values, so it runs only after a program.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.rng import root_key
from imagepiece_jax.errors import InputError
from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.reduction.block_plan import BlockPlan, StepCounts
from imagepiece_jax.reduction.reducers import Reducer
from imagepiece_jax.reduction.state import (
    Assignment,
    Masking,
    Mixing,
    ReducerInputs,
    Result,
)


def check_plan(
    plan: tuple[BlockPlan, ...],
    class_token: bool,
    pool: str,
    grid: tuple[int, int] | None,
) -> None:
    """Check that attention, model and grid meet the needs of a plan's steps.

    class_token, pool: parts of the model's `Architecture`
    grid: (height, width) in patches
    Raises InputError for the first unmet need, with the block.
    """
    missing_parts = list_missing_parts(class_token, pool)
    for block, block_plan in enumerate(plan):
        if block_plan.step is None:
            continue
        reducer = block_plan.step.reducer
        for field, part in missing_parts.items():
            if field in reducer.needed_inputs:
                raise InputError(
                    f"{type(reducer).__name__} ranks tokens at block {block} by a "
                    f"score of the {part}, but the model has no {part}; name "
                    "another score"
                )
        if block_plan.step.site == "pre" and reducer.attention_reads:
            if block == 0 or plan[block - 1].site not in (None, "pre"):
                raise InputError(
                    f"{type(reducer).__name__} at block {block} reads the attention of "
                    "the block before; this block must exist and keep its tokens"
                )
        if block_plan.counts:
            reducer.check_fits(grid, block_plan.counts)
            grid = None  # reduced tokens have no grid


def list_missing_parts(class_token: bool, pool: str) -> dict[str, str]:
    """List a model's missing scores: {field of ReducerInputs: part it would need}."""
    missing_parts = {}
    if not class_token:
        missing_parts["cls_attn"] = "class token"
        missing_parts["cls_and_mean_attn"] = "class token"
    if pool != "map":
        missing_parts["probe"] = "attention-pooling head"
    return missing_parts


def check_form(result: object, counts: StepCounts) -> None:
    """Check shapes and types of a reducer's result; arrays may be traced.

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
        if not jnp.issubdtype(result.slot_of_token.dtype, jnp.integer):
            raise InputError(
                f"slot_of_token is {result.slot_of_token.dtype}; it must be integers"
            )
        _check_shape("slot_of_token", result.slot_of_token, n_in)
        _check_shape("weight", result.weight, n_in)
        _check_shape("attn_size", result.attn_size, n_in)
    elif isinstance(result, Mixing):
        _check_shape("matrix", result.matrix, n_out, n_in)
        _check_shape("attn_size", result.attn_size, n_out)
    elif isinstance(result, Masking):
        _check_shape("keep", result.keep, n_in)
        num_tokens = n_in if result.append is None else n_in + 1
        if num_tokens != n_out:
            raise InputError(f"keep leaves {num_tokens} tokens; it must leave {n_out}")
    else:
        raise InputError(
            f"a reducer returned a {type(result).__name__}; it must be an Assignment, "
            "a Mixing or a Masking"
        )


def check_values(result: object, counts: StepCounts) -> None:
    """Check the values of a reducer's result, outside `jax.jit` only.

    Raises InputError, with image, slot or token.
    """
    # Every token has a slot or is dropped, every slot has a token, or one token without
    # `merges`, and weights are finite.
    check_form(result, counts)
    numpy_result: Any = jax.tree.map(np.asarray, result)
    if isinstance(result, Assignment):
        _check_slots(numpy_result.slot_of_token, result.n_out, result.merges)
    for name in ("weight", "attn_size", "matrix", "keep"):
        values = getattr(numpy_result, name, None)
        if values is not None:
            _check_finite(name, values)


def _check_finite(name, values):
    is_finite = np.isfinite(values.astype(np.float32))
    for image, *index in _find_first_true(~is_finite):
        value = values[image, *index]
        raise InputError(f"image {image}: {name}{index} is {value}")


def check_results(plan: tuple[BlockPlan, ...], results: Sequence[Result]) -> None:
    """`check_values` the results of a plan's reducing steps (`Outputs.results`).

    Raises InputError for a result that breaks the contract, with the step's block.
    """
    reducing_steps = [
        (block_plan.step, block_plan.counts)
        for block_plan in plan
        if block_plan.step and block_plan.counts
    ]
    for (step, counts), result in zip(reducing_steps, results, strict=True):
        try:
            check_values(result, counts)
        except InputError as error:
            block = step.block
            reducer = type(step.reducer).__name__
            raise InputError(f"block {block}, {reducer}: {error}") from error


def random_inputs(
    reducer: Reducer, n: int, embed_dim: int, num_heads: int
) -> ReducerInputs:
    """Make random ReducerInputs: two images with `n` tokens."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, n, embed_dim)), jnp.float32)
    size = jnp.asarray(rng.integers(1, 4, size=(2, n)), jnp.float32)
    scores = jax.nn.softmax(x[..., 0])
    key = x[..., : embed_dim // num_heads]
    compares_tokens = reducer.metric in ("token", "input")
    return ReducerInputs(
        x=x,
        size=size,
        attn_size=size,
        metric=x if compares_tokens else key,
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
        size_list = ", ".join(map(str, sizes))
        raise InputError(f"{name} has shape {array.shape}; it must be [B, {size_list}]")


def _find_first_true(flags):
    """Locate an array's first True: a list with one index, or an empty list."""
    return [index.tolist() for index in np.argwhere(flags)[:1]]


def _check_slots(slot_of_token, n_out, merges):
    """Check that slots are in range, not empty, and single tokens without `merges`."""
    is_outside = (slot_of_token < 0) | (slot_of_token >= n_out)
    for image, token in _find_first_true(is_outside & (slot_of_token != DROPPED)):
        raise InputError(
            f"image {image}: token {token} goes to slot {slot_of_token[image, token]}; "
            f"it must be 0 to {n_out - 1}, or {DROPPED} for a dropped token"
        )
    slots = np.arange(n_out)[None, :, None]
    num_tokens = (slot_of_token[:, None, :] == slots).sum(axis=-1)
    for image, slot in _find_first_true(num_tokens == 0):
        raise InputError(f"image {image}: slot {slot} of {n_out} gets no token")
    for image, slot in _find_first_true((num_tokens > 1) & (not merges)):
        raise InputError(
            f"image {image}: slot {slot} gets {num_tokens[image, slot]} tokens, but "
            "merges is False"
        )
