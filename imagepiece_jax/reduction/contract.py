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

from imagepiece_jax.common.checks import refuse_any
from imagepiece_jax.common.rng import root_key
from imagepiece_jax.errors import InputError, titled_errors
from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.reduction.block_plan import BlockPlan, StepCounts
from imagepiece_jax.reduction.reducers import SCORES, Reducer
from imagepiece_jax.reduction.state import Assignment, Masking, Mixing, ReducerInputs


def check_plan(
    plan: Sequence[BlockPlan], class_token: bool, pool: str, grid: Any
) -> None:
    """Check that attention, model and grid meet the needs of a plan's steps.

    class_token, pool: parts of the model's `Architecture`
    grid: (height, width) in patches, or None
    Raises InputError for the first unmet need, with the block.
    """
    missing_parts = list_missing_parts(class_token, pool)
    for index, block_plan in enumerate(plan):
        if block_plan.step is None:
            continue
        reducer = block_plan.step.reducer
        title = f"{type(reducer).__name__} at block {index}"
        for field in missing_parts.keys() & reducer.needed_inputs:
            sentence = f"{title}: name another score, the model has no "
            raise InputError(sentence + missing_parts[field])
        reads_earlier = block_plan.step.site == "pre" and reducer.attention_reads
        if reads_earlier and (index == 0 or plan[index - 1].site not in (None, "pre")):
            raise InputError(
                f"{title} reads attention of the block before, which must exist and "
                "keep its tokens"
            )
        if block_plan.counts:
            reducer.check_fits(grid, block_plan.counts)
            grid = None  # reduced tokens have no grid


def list_missing_parts(class_token: bool, pool: str) -> dict[str, str]:
    """List a model's missing scores: {field of ReducerInputs: part it would need}."""
    missing_parts = {}
    if not class_token:
        missing_parts = dict.fromkeys(("cls_attn", "cls_and_mean_attn"), "class token")
    if pool != "map":
        missing_parts["probe"] = "attention-pooling head"
    return missing_parts


def check_form(result: object, counts: StepCounts) -> None:
    """Check shapes and types of a reducer's result; arrays may be traced.

    Raises InputError if result and counts contradict.
    """
    n_in = counts.n_in
    n_out = counts.n_out
    # The batch is left out. An array that is None passes.
    shapes: dict[type, dict] = {
        Assignment: {"slot_of_token": [n_in], "weight": [n_in], "attn_size": [n_in]},
        Mixing: {"matrix": [n_out, n_in], "attn_size": [n_out]},
        Masking: {"keep": [n_in]},
    }
    if type(result) not in shapes:
        raise InputError(f"a reducer returned {type(result)}, none of {[*shapes]}")
    problems = []
    for name, sizes in shapes[type(result)].items():
        shape = getattr(getattr(result, name), "shape", (None, *sizes))
        sentence = f"{name} has shape {shape}; it must be {['B', *sizes]}"
        problems.append(([*shape[1:]] != sizes, sentence))
    if isinstance(result, Assignment):
        dtype = result.slot_of_token.dtype
        is_integer = jnp.issubdtype(dtype, jnp.integer)
        problems.append((not is_integer, f"slot_of_token is {dtype}, not integers"))
        sentence = f"n_out is {result.n_out}; it must be {n_out}, of {n_in} tokens"
        problems.append((result.n_out != n_out or n_out > n_in, sentence))
    elif isinstance(result, Masking):
        num_tokens = n_in + (result.append is not None)
        sentence = f"keep leaves {num_tokens} tokens; it must leave {n_out}"
        problems.append((num_tokens != n_out, sentence))
    refuse_any(*problems)


def check_values(result: object, counts: StepCounts) -> None:
    """Check the values of a reducer's result, outside `jax.jit` only.

    Raises InputError, with image, slot or token.
    """
    check_form(result, counts)
    numpy_result: Any = jax.tree.map(np.asarray, result)
    faults = {}  # {sentence about the place of a fault: where it is, [B, ..]}
    if isinstance(result, Assignment):
        slot_of_token = numpy_result.slot_of_token
        is_outside = (slot_of_token < 0) | (slot_of_token >= result.n_out)
        sentence = f"no slot from 0 to {result.n_out - 1}, nor {DROPPED}, has token"
        faults[sentence] = is_outside & (slot_of_token != DROPPED)
        slots = np.arange(result.n_out)[None, :, None]
        is_member = slot_of_token[:, None, :] == slots  # [batch, slots, tokens]
        member_counts = is_member.sum(axis=-1)
        faults["no token is in slot"] = member_counts == 0
        sentence = "merges is False, but several tokens are in slot"
        faults[sentence] = (member_counts > 1) & (not result.merges)
    for name in ("weight", "attn_size", "matrix", "keep"):
        values = getattr(numpy_result, name, None)
        if values is not None:
            faults[f"{name} is not finite at"] = ~np.isfinite(values.astype(np.float32))
    for sentence, is_fault in faults.items():
        for image_index, *indices in np.argwhere(is_fault).tolist()[:1]:  # the first
            place = ", ".join(map(str, indices))
            raise InputError(f"image {image_index}: {sentence} {place}")


def check_results(plan: Sequence[BlockPlan], results: Sequence[object]) -> None:
    """`check_values` the results of a plan's reducing steps (`Outputs.results`).

    Raises InputError for a result that breaks the contract, with the step's block.
    """
    step_blocks = [index for index, block_plan in enumerate(plan) if block_plan.counts]
    for index, result in zip(step_blocks, results, strict=True):
        block_plan = plan[index]
        counts: Any = block_plan.counts
        with titled_errors(f"block {index}, {type(block_plan.reducer).__name__}"):
            check_values(result, counts)


def random_inputs(
    reducer: Reducer, n: int, embed_dim: int, num_heads: int
) -> ReducerInputs:
    """Make random ReducerInputs: two images with `n` tokens."""
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(2, n, embed_dim)), jnp.float32)
    size = jnp.asarray(generator.integers(1, 4, size=(2, n)), jnp.float32)
    scores = jax.nn.softmax(x[..., 0])  # any positive numbers [2, n] with sum 1
    key = x[..., : embed_dim // num_heads]
    metric = x if reducer.metric in ("token", "input") else key
    all_scores: dict[str, Any] = dict.fromkeys({*SCORES.values()} - {"key"}, scores)
    fields = {"x": x, "size": size, "attn_size": size, "metric": metric, "key": key}
    random_keys = jax.random.split(root_key(0), 2)
    return ReducerInputs(**fields, rng=random_keys, num_heads=num_heads, **all_scores)
