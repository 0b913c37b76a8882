import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.spvit import Selector, SPViT, package_weights
from imagepiece_jax.reduction.state import Masking, ReducerInputs, initial_state
from tests.helpers import oracles, oracles_learned, tiny_vit
from tests.helpers.named_models import facts
from tests.helpers.random_gradients import draw_normal
from tests.helpers.reduction_steps import apply, apply_learned, random_variables
from tests.reduction.test_token_selector import image_keys, outputs

BATCH = 3
HEADS = 3
D = 12


def run_selector(selector, counts, x, mask=None):
    """(parameters, result) of a selector with random parameters."""
    size = np.ones(x.shape[:2], np.float32)
    keys = image_keys(len(x))
    inputs = ReducerInputs(x=x, size=size, mask=mask, rng=keys, num_heads=HEADS)
    variables = random_variables(selector, inputs, counts)
    return variables["params"], apply_learned(selector, variables, inputs, counts)


def test_an_empty_package_is_zero_with_bounded_gradients():
    probability = np.full((1, 4), 0.5, np.float32)
    all_kept = np.ones((1, 4), np.float32)

    def package(probability, keep):
        weight = package_weights(probability, all_kept - keep)
        return jnp.sum(weight * jnp.arange(1.0, 5.0)[None])

    run = tiny_vit.compiled(jax.value_and_grad(package, argnums=(0, 1)))
    value, gradients = run(probability, all_kept)
    assert float(value) == 0
    assert max(np.abs(slope).max() for slope in gradients) <= 4


def test_evaluation_equals_the_oracle():
    """The best tokens stay in order, then old packages, then the new one."""
    x = draw_normal(BATCH, 10, D)
    counts = StepCounts(n_in=10, n_out=6, stage=3)  # two packages: 3 + 2 + 1 stay
    parameters, result = run_selector(Selector(), counts, x)
    state = apply(initial_state(x, num_prefix=0), result)
    for image in range(BATCH):
        tokens = x[image].astype(float)
        _, probability = oracles_learned.select(parameters, tokens, HEADS)
        kept_slots = oracles.top_k(probability[:8], 3)
        dropped = np.append(kept_slots == -1, [False, False])
        expected_slots = np.append(np.where(kept_slots == -1, 5, kept_slots), [3, 4])
        np.testing.assert_array_equal(result.slot_of_token[image], expected_slots)
        package = oracles_learned.package(probability, dropped, tokens)
        rows = np.vstack([tokens[~dropped], package])
        np.testing.assert_allclose(state.x[image], rows, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(state.size[image], [1] * 5 + [5])


def test_training_equals_the_oracle():
    """Two tokens are packages; a new package has no token masked before."""
    x = draw_normal(BATCH, 10, D)
    live_before = np.ones((BATCH, 10), np.float32)
    live_before[:, [1, 4]] = 0
    counts = StepCounts(n_in=10, n_out=11, stage=3)
    parameters, result = run_selector(Selector(), counts, x, live_before)
    keep = np.asarray(result.keep)
    assert set(np.unique(keep)) == {0.0, 1.0}
    assert (keep[:, 8:] == 1).all()
    assert (keep <= live_before).all()
    for image in range(BATCH):
        tokens = x[image].astype(float)
        selector_inputs = (parameters, tokens, HEADS, live_before[image])
        _, probability = oracles_learned.select(*selector_inputs)
        dropped = live_before[image] > keep[image]
        assert dropped.any()
        package = oracles_learned.package(probability, dropped, tokens)
        np.testing.assert_allclose(result.append[image], package, rtol=1e-4, atol=1e-5)


def test_tokens_live_as_often_as_their_votes_say():
    """Over 2,000 equal images, by the mean log odds."""
    count = 2000
    x = np.broadcast_to(draw_normal(1, 4, D), (count, 4, D))
    parameters, result = run_selector(Selector(), StepCounts(n_in=4, n_out=5), x)
    scores, _ = oracles_learned.select(parameters, x[0].astype(float), HEADS)
    share = np.exp(scores[:, 0]) / np.exp(scores).sum(axis=1)
    np.testing.assert_allclose(result.keep.mean(axis=0), share, atol=0.045)


def test_underflowing_votes_stay_finite():
    x = draw_normal(BATCH, 5, D)
    counts = StepCounts(n_in=5, n_out=3)
    parameters, _ = run_selector(Selector(), counts, x)
    parameters["vote_out"]["bias"] = np.float32([-300, -302, -301])

    def total_weight(x):
        inputs = ReducerInputs(x=x, size=x[..., 0], num_heads=HEADS)
        return jnp.sum(Selector().apply({"params": parameters}, inputs, counts).weight)

    run = tiny_vit.compiled(jax.value_and_grad(total_weight))
    chex.assert_tree_all_finite(run(x))


def test_the_ratio_is_over_the_whole_batch_without_packages():
    """Shares .5 and .75 of four are .625 together: (.625 - .7)^2, and (.25 - .3)^2."""
    first_keep = [[1, 1, 0, 0], [1, 1, 1, 0]]
    second_keep = [[1, 0, 0, 0, 1], [1, 0, 0, 0, 1]]  # the fifth is a package
    results = tuple(Masking(np.float32(mask)) for mask in (first_keep, second_keep))
    out = outputs(np.zeros((2, 5, 3)), np.zeros((2, 4)), results)
    # More tokens have the same target shares.
    method = SPViT(keep_rates=(0.7, 0.3), blocks=(1, 2))
    plan = method.plan(facts(3, patches=10), masked=True)
    terms = SPViT(ratio_weight=1.0).loss(out, out, plan)
    assert float(terms["ratio"]) == pytest.approx((0.075**2 + 0.05**2) / 2, rel=1e-5)
    assert float(terms["kl"]) == float(terms["tokens"]) == 0
