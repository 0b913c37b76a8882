"""SPViT: votes of the heads, and packages of dropped tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction.block_plan import StepCounts, plan_blocks
from imagepiece_jax.reduction.methods.spvit import Selector, SPViT, package_weights
from imagepiece_jax.reduction.moves import apply_result
from imagepiece_jax.reduction.state import (
    Assignment,
    Masking,
    ReducerInputs,
    initial_state,
)
from tests.helpers import oracles, oracles_learned, tiny_vit
from tests.helpers.named_models import facts
from tests.helpers.reduction_steps import apply_learned, random_variables
from tests.reduction.test_token_selector import numbers, outputs

FIELDS = "spvit:keep_rates=(0.6,0.3):blocks=(1,2)"  # 25, 16, 9
BATCH = 3
HEADS = 3
D = 12


def run(selector, counts, x, mask=None):
    """(parameters, result) of a selector with random parameters."""
    keys = jax.random.split(jax.random.key(0), len(x))
    size = np.ones(x.shape[:2], np.float32)
    inputs = ReducerInputs(x=x, size=size, mask=mask, rng=keys, num_heads=HEADS)
    variables = random_variables(selector, inputs, counts)
    return variables["params"], apply_learned(selector, variables, inputs, counts)


def test_nothing_dropped_is_a_package_of_zeros_with_a_tame_gradient():
    probability = np.full((1, 4), 0.5, np.float32)
    before = np.ones((1, 4), np.float32)

    def package(probability, keep):
        weight = package_weights(probability, before - keep)
        return jnp.sum(weight * jnp.arange(1.0, 5.0)[None])

    run = tiny_vit.compiled(jax.value_and_grad(package, argnums=(0, 1)))
    value, slopes = run(probability, before)
    assert float(value) == 0
    assert max(np.abs(slope).max() for slope in slopes) <= 4


def test_evaluation_equals_the_oracle():
    """The best stay in order, then older packages, then the new one."""
    x = numbers(BATCH, 10, D)
    counts = StepCounts(n_in=10, n_out=6, stage=3)  # two packages: 3 + 2 + 1 stay
    parameters, result = run(Selector(), counts, x)
    assert isinstance(result, Assignment)
    assert result.n_out == 6
    move = tiny_vit.compiled(
        lambda x, result: apply_result(initial_state(x, num_prefix=0), result)
    )
    state = move(x, result)
    for image in range(BATCH):
        tokens = x[image].astype(float)
        _, probability = oracles_learned.select(parameters, tokens, HEADS)
        dest = oracles.top_k(probability[:8], 3)
        dropped = np.append(dest == -1, [False, False])
        want = np.append(np.where(dest == -1, 5, dest), [3, 4])
        np.testing.assert_array_equal(result.slot_of_token[image], want)
        package = oracles_learned.package(probability, dropped, tokens)
        rows = np.vstack([tokens[~dropped], package])
        np.testing.assert_allclose(state.x[image], rows, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(state.size[image], [1] * 5 + [5])


def test_training_equals_the_oracle():
    """Two packages are among the tokens; what was masked is in no new package."""
    x = numbers(BATCH, 10, D)
    before = np.ones((BATCH, 10), np.float32)
    before[:, [1, 4]] = 0
    counts = StepCounts(n_in=10, n_out=11, stage=3)
    parameters, result = run(Selector(), counts, x, before)
    assert isinstance(result, Masking)
    keep = np.asarray(result.keep)
    assert set(np.unique(keep)) == {0.0, 1.0}
    assert (keep[:, 8:] == 1).all()
    assert (keep <= before).all()
    for image in range(BATCH):
        tokens = x[image].astype(float)
        _, probability = oracles_learned.select(
            parameters, tokens, HEADS, before[image]
        )
        dropped = before[image] > keep[image]
        assert dropped.any()
        want = oracles_learned.package(probability, dropped, tokens)
        np.testing.assert_allclose(result.append[image], want, rtol=1e-4, atol=1e-5)


def test_draws_follow_the_votes():
    """Over many images alike, tokens live as often as their mean log odds imply."""
    count = 2000
    x = np.broadcast_to(numbers(1, 4, D), (count, 4, D))
    parameters, result = run(Selector(), StepCounts(n_in=4, n_out=5), x)
    scores, _ = oracles_learned.select(parameters, x[0].astype(float), HEADS)
    share = np.exp(scores[:, 0]) / np.exp(scores).sum(axis=1)
    np.testing.assert_allclose(result.keep.mean(axis=0), share, atol=0.045)


def test_votes_that_underflow_still_count():
    x = numbers(BATCH, 5, D)
    parameters, _ = run(Selector(), StepCounts(n_in=5, n_out=3), x)
    parameters["vote_out"]["bias"] = np.float32([-300, -302, -301])
    size = np.ones((BATCH, 5), np.float32)

    @tiny_vit.compiled
    @jax.value_and_grad
    def total(x):
        inputs = ReducerInputs(x=x, size=size, num_heads=HEADS)
        selector = Selector()
        counts = StepCounts(n_in=5, n_out=3)
        return jnp.sum(selector.apply({"params": parameters}, inputs, counts).weight)

    value, slope = total(x)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


def test_the_ratio_is_of_the_whole_batch_without_packages():
    """Shares .5 and .75 of four are .625 together: (.625 - .7)^2, and (.25 - .3)^2."""
    first = [[1, 1, 0, 0], [1, 1, 1, 0]]
    second = [[1, 0, 0, 0, 1], [1, 0, 0, 0, 1]]  # the fifth is a package
    results = tuple(Masking(np.float32(mask)) for mask in (first, second))
    out = outputs(np.zeros((2, 5, 3)), np.zeros((2, 4)), results)
    steps = SPViT(keep_rates=(0.7, 0.3), blocks=(1, 2)).steps(facts(3))
    plan = plan_blocks(
        3, 10, steps, masked=True
    )  # shares of more tokens, the same targets
    terms = SPViT(ratio_weight=1.0).loss(out, out, plan)
    assert float(terms["ratio"]) == pytest.approx((0.075**2 + 0.05**2) / 2, rel=1e-5)
    assert float(terms["kl"]) == float(terms["tokens"]) == 0
