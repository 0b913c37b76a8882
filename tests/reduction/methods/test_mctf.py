"""MCTF: a fusion in both directions by hand."""

import functools

import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.reduction import contract
from imagepiece_jax.reduction.block_plan import StepCounts, build
from imagepiece_jax.reduction.methods.mctf import MCTF, Fusion
from imagepiece_jax.reduction.methods.token_pooling import TokenPooling
from imagepiece_jax.reduction.moves import merge_map
from imagepiece_jax.reduction.state import ReducerInputs, TokenState
from tests import oracles
from tests.models import tiny
from tests.reduction.steps import apply, decide, vectors
from tests.rounding import assert_close


def test_a_fusion_by_hand():
    """Eight tokens, class token first; groups, features, sizes and the map after it."""
    x = vectors([0, 10, 30, 35, 60, 70, 80, 160], [1, 1, 1, 2, 1, 1, 1, 1])
    size = np.float32([[1, 1, 2, 1, 1, 4, 1, 1]])
    row = np.exp(np.float32([0, 0.5, -0.5, 1, 0, -0.2, 0.3, -1]))
    row = row / row.sum()
    weights = np.broadcast_to(row[None, None, None, :], (1, 1, 8, 8))
    image = size[:, 1:]
    inputs = ReducerInputs(x[:, 1:], image, image, x[:, 1:], attn_columns=row[None, 1:])
    result = decide(Fusion(), inputs, StepCounts(n_in=7, n_out=4))
    # {2, 3}, {4, 5, 6}, {1}, {7}
    assert result.dest.tolist() == [[2, 0, 0, 1, 1, 1, 3]]
    after = apply(TokenState(x, size), result)
    want = [(1, 0), (1.4, 0.9475), (0.3297, 0.9374), (0.9848, 0.1736)]
    want.append((-0.9397, 0.342))
    np.testing.assert_allclose(after.x[0], want, atol=1e-4)
    assert after.size.tolist() == [[1, 3, 6, 1, 1]]
    merged = tiny.compiled(merge_map)(weights, result, image)
    want = np.tile([0.1052, 0.3496, 0.3332, 0.1734, 0.0387], (5, 1))
    np.testing.assert_allclose(merged[0, 0], want, atol=1e-4)


def test_another_score_takes_the_place_of_attention():
    x = vectors([0, 10, 30, 35, 60, 70, 80, 160], [1, 1, 1, 2, 1, 1, 1, 1])[:, 1:]
    values = np.random.default_rng(0).dirichlet(np.ones(7), 1).astype(np.float32)
    size = np.float32([[1, 2, 1, 1, 4, 1, 1]])
    counts = StepCounts(n_in=7, n_out=4)
    want = decide(
        Fusion(), ReducerInputs(x, size, size, x, attn_columns=values), counts
    )
    found = decide(
        Fusion(score="shift"), ReducerInputs(x, size, size, x, shift=values), counts
    )
    np.testing.assert_array_equal(found.dest, want.dest)
    np.testing.assert_array_equal(found.weight, want.weight)
    (step,) = MCTF(blocks=(1,), score="shift").steps(3)
    assert step.site == "mid"
    assert "attn_columns" not in step.reducer.reads


def test_values_and_residual_are_those_of_the_fused_tokens():
    """One block, against its own parts: attention's map, values, projection and MLP."""
    model = tiny.model("mctf:r=7:blocks=(0,)", depth=1)
    variables = tiny.variables(model)
    run = functools.partial(
        model.apply, capture_intermediates=True, mutable="intermediates"
    )
    out, seen = tiny.compiled(run)(variables, tiny.images(2))
    inside = seen["intermediates"]["blocks_0"]
    attn = inside["attn"]
    params = variables["params"]["blocks_0"]
    before, after = inside["norm1"]["__call__"]
    heads = (tiny.HEADS, -1)
    tokens = [int(a.shape[0]) // 2 for a in (before, after)]
    assert tokens == [26, 19]
    assert model.plan[0].mlp_tokens == 19
    assert attn["v"]["__call__"][0].shape[0] == 2 * 19
    query, key = (
        np.asarray(attn[n]["__call__"][0], float).reshape(2, 26, *heads) for n in "qk"
    )
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = oracles.softmax(logits)
    (result,) = out.results
    (inputs,) = out.reducer_inputs
    received = weights.mean(axis=(1, 2))[:, 1:]
    assert_close(inputs.attn_columns, received, units=128)
    value = np.asarray(attn["v"]["__call__"][0], float).reshape(2, 19, *heads)
    merge = tiny.compiled(merge_map)  # tested in test_attention_sizes
    merged = merge(np.float32(weights), result, inputs.size)
    mixed = np.einsum("bhqk,bkhd->bqhd", merged, value).reshape(2, 19, tiny.WIDTH)
    want = mixed @ params["attn"]["proj"]["kernel"] + params["attn"]["proj"]["bias"]
    got = np.asarray(attn["proj"]["__call__"][0]).reshape(want.shape)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_a_step_before_the_next_block_would_read_what_is_gone():
    pooling = TokenPooling(blocks=(2,), score="class")
    plan = build(4, 196, (*MCTF(blocks=(1,)).steps(4), *pooling.steps(4)))
    with pytest.raises(InputError, match="at block 2 reads .* keep its tokens"):
        contract.check_plan(plan, Architecture(), (14, 14))
