import numpy as np
import pytest

from imagepiece_jax.reduction import contract
from imagepiece_jax.reduction.block_plan import plan_blocks
from imagepiece_jax.reduction.methods.mctf import MCTF, Fusion
from imagepiece_jax.reduction.methods.token_pooling import TokenPooling
from tests.helpers import oracles, tiny_vit
from tests.helpers.named_models import facts
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close


@pytest.mark.parametrize("even", [0, 1])
@pytest.mark.parametrize("similarity", [1.0, 0.1, 1e6])
def test_fusion_values_are_products_of_the_criteria(similarity, even):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 4)).astype(np.float32)
    received = rng.dirichlet(np.ones(9)).astype(np.float32)
    size = rng.integers(1, 9, 9).astype(np.float32)
    expected = ((oracles.cosine(x, x) + 1) / 2) ** (1 / similarity)
    for value, temperature in ((received, 2.0), (size, 3.0)):
        ratio = value.min() / value.astype(float)
        expected = expected * np.outer(ratio, ratio) ** (1 / temperature)
    fusion = Fusion(similarity, 2.0, 3.0)
    arrays = (x[None], received[None], size[None])
    run = tiny_vit.compiled(fusion.fusion_values, static_argnums=3)
    (values,) = run(*arrays, even)
    assert_close(values, expected[even::2, 1 - even :: 2], units=256)


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
def test_ten_tokens_stay_for_a_number_but_not_for_a_share(r, tokens, left):
    """Counts by hand, with the class token, as in the authors' code."""
    plan = MCTF(r=r).plan(facts(2, tokens - 1), num_prefix=1)
    assert plan[-1].mlp_tokens == left


def test_a_step_before_the_next_block_cannot_read_its_attention():
    pooling = TokenPooling(blocks=(2,), score="class")
    steps = (*MCTF(blocks=(1,)).steps(facts(4)), *pooling.steps(facts(4)))
    with refused("at block 2 reads", "keep its tokens"):
        contract.check_plan(plan_blocks(4, 196, steps), True, "token", (14, 14))
