"""MCTF: a fusion in both directions by hand."""

import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.kernels.merging import merge_map
from imagepiece_jax.reduction import contract
from imagepiece_jax.reduction.block_plan import StepCounts, plan_blocks
from imagepiece_jax.reduction.methods.mctf import MCTF, Fusion
from imagepiece_jax.reduction.methods.token_pooling import TokenPooling
from imagepiece_jax.reduction.state import ReducerInputs, TokenState
from tests.helpers import oracles, tiny_vit
from tests.helpers.named_models import facts
from tests.helpers.reduction_steps import apply, decide, vectors
from tests.helpers.rounding import assert_close

# Class token first.
EIGHT = vectors([0, 10, 30, 35, 60, 70, 80, 160], [1, 1, 1, 2, 1, 1, 1, 1])


def test_a_fusion_by_hand():
    """Groups, features, sizes and the map of attention after it."""
    x = EIGHT
    size = np.float32([[1, 1, 2, 1, 1, 4, 1, 1]])
    row = np.exp(np.float32([0, 0.5, -0.5, 1, 0, -0.2, 0.3, -1]))
    row = row / row.sum()
    weights = np.broadcast_to(row[None, None, None, :], (1, 1, 8, 8))
    image = size[:, 1:]
    inputs = ReducerInputs(x[:, 1:], image, image, x[:, 1:], attn_columns=row[None, 1:])
    result = decide(Fusion(), inputs, StepCounts(n_in=7, n_out=4))
    # {2, 3}, {4, 5, 6}, {1}, {7}
    assert result.slot_of_token.tolist() == [[2, 0, 0, 1, 1, 1, 3]]
    after = apply(TokenState(x, size), result)
    want = [(1, 0), (1.4, 0.9475), (0.3297, 0.9374), (0.9848, 0.1736)]
    want.append((-0.9397, 0.342))
    np.testing.assert_allclose(after.x[0], want, atol=1e-4)
    assert after.size.tolist() == [[1, 3, 6, 1, 1]]
    merged = tiny_vit.compiled(merge_map)(weights, result, image)
    want = np.tile([0.1052, 0.3496, 0.3332, 0.1734, 0.0387], (5, 1))
    np.testing.assert_allclose(merged[0, 0], want, atol=1e-4)


def test_another_score_takes_the_place_of_attention():
    x = EIGHT[:, 1:]
    values = np.random.default_rng(0).dirichlet(np.ones(7), 1).astype(np.float32)
    size = np.float32([[1, 2, 1, 1, 4, 1, 1]])
    both = ReducerInputs(x, size, size, x, attn_columns=values, shift=values[:, ::-1])
    turned = both.replace(attn_columns=values[:, ::-1], shift=values)
    counts = StepCounts(n_in=7, n_out=4)
    want = decide(Fusion(), both, counts)
    found = decide(Fusion(score="shift"), turned, counts)
    np.testing.assert_array_equal(found.slot_of_token, want.slot_of_token)
    np.testing.assert_array_equal(found.weight, want.weight)
    (step,) = MCTF(blocks=(1,), score="shift").steps(facts(3))
    assert step.site == "mid"
    assert "attn_columns" not in step.reducer.attention_reads


@pytest.mark.parametrize("even", [0, 1])
@pytest.mark.parametrize("similarity", [1.0, 0.1, 1e6])
def test_fusion_values_are_products_of_the_criteria(similarity, even):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 4)).astype(np.float32)
    received = rng.dirichlet(np.ones(9)).astype(np.float32)
    size = rng.integers(1, 9, 9).astype(np.float32)
    want = ((oracles.cosine(x, x) + 1) / 2) ** (1 / similarity)
    for value, temperature in ((received, 2.0), (size, 3.0)):
        small = value.min() / value.astype(float)
        want = want * np.outer(small, small) ** (1 / temperature)
    fusion = Fusion(similarity, 2.0, 3.0)
    arrays = (x[None], received[None], size[None])
    got = tiny_vit.compiled(fusion.fusion_values, static_argnums=3)(*arrays, even)
    assert_close(got[0], want[even::2, 1 - even :: 2], units=256)


@pytest.mark.parametrize(
    "r, tokens, left",
    [
        (0.4, 11, 7),  # of 10 image tokens 4, though fewer than ten stay
        (0.9, 30, 16),  # half of the image tokens
        (0.4, 10, 10),
        (4, 11, 10),
        (4, 13, 10),
        (4, 10, 10),
    ],
)
def test_ten_tokens_stay_of_a_number_and_not_of_a_share(r, tokens, left):
    """By hand, as the authors' code counts, class token included."""
    plan = plan_blocks(2, tokens - 1, MCTF(r=r).steps(facts(2)), 1)
    assert plan[-1].mlp_tokens == left


def test_a_step_before_the_next_block_would_read_what_is_gone():
    pooling = TokenPooling(blocks=(2,), score="class")
    plan = plan_blocks(
        4, 196, (*MCTF(blocks=(1,)).steps(facts(4)), *pooling.steps(facts(4)))
    )
    with pytest.raises(InputError, match="at block 2 reads .* keep its tokens"):
        contract.check_plan(plan, True, "token", (14, 14))
