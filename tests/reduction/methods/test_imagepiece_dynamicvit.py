import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction import moves, token_selector
from imagepiece_jax.reduction.block_plan import StepCounts, plan_blocks
from imagepiece_jax.reduction.methods.dynamicvit import KeepPredictor
from imagepiece_jax.reduction.methods.imagepiece_dynamicvit import (
    ImagePieceDynamicViT,
    NoisyTopK,
)
from imagepiece_jax.reduction.state import ReducerInputs, initial_state
from tests.helpers import masked_models, oracles, oracles_learned, tiny_vit
from tests.helpers.named_models import facts
from tests.helpers.reduction_steps import random_variables
from tests.helpers.rounding import assert_close

MASK = (  # 25 image tokens; merged 23; pruned 14; merged 13
    "imagepiece_dynamicvit:keep_rate=0.6:merge_ratio=0.06:mode=mask"
    ":merge_blocks=(0,2):prune_blocks=(1,)"
)


@pytest.mark.parametrize("score", ["class", "class_and_mean"])
def test_masked_tokens_are_never_merged(score):
    _, run = masked_models.training_model(f"{MASK}:score={score}")
    out = run(masked_models.keys())
    _, masking, merge = out.results
    assert out.state.mask.shape == (3, 22)
    keep = np.asarray(masking.keep)
    slots = np.asarray(merge.slot_of_token)
    for image in range(3):
        assert 4 < keep[image].sum() < 20  # more than the candidates of the merge
        slot_sizes = oracles.count_sources(slots[image], 22)[slots[image]]
        assert (slot_sizes > 1).sum() == 2
        assert (keep[image][slot_sizes > 1] == 1).all()
        live = [keep[image][slots[image] == slot].max() for slot in range(22)]
        np.testing.assert_array_equal(out.state.mask[image], live)


def test_target_shares_equal_the_shares_in_evaluation():
    """132 of 165, 89 of 111 and 60 of 74 stay; without masks there are no targets."""
    plan = plan_blocks(12, 196, ImagePieceDynamicViT().steps(facts()), masked=True)
    expected = np.cumprod([132 / 165, 89 / 111, 60 / 74]).tolist()
    method = ImagePieceDynamicViT()
    assert_close(method.target_kept_shares(plan), expected, units=1)
    for fields in ({"keep_rate": 1.0}, {"mode": "topk"}):
        steps = ImagePieceDynamicViT(**fields).steps(facts())
        assert method.target_kept_shares(plan_blocks(12, 196, steps, masked=True)) == []


COUNTS = StepCounts(n_in=9, n_out=4)


def noisy_topk():
    """(inputs of nine tokens, variables of a NoisyTopK)."""
    x = np.random.default_rng(0).normal(size=(2, 9, 8)).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), 2)
    inputs = ReducerInputs(x=x, size=np.ones((2, 9), np.float32), rng=keys)
    return inputs, random_variables(NoisyTopK(), inputs, COUNTS)


def test_scores_decide_in_evaluation_and_noisy_scores_in_training():
    inputs, variables = noisy_topk()
    noise = token_selector.draw_gumbel_noise(inputs.rng, (9,))
    cases = (KeepPredictor(), False), (NoisyTopK(), False), (NoisyTopK(), True)
    for reducer, train in cases:
        run = tiny_vit.compiled(reducer.apply, static_argnums=(2, 3))
        slots = run(variables, inputs, COUNTS, train).slot_of_token
        for image, x in enumerate(np.asarray(inputs.x, float)):
            parameters = variables["params"]["scores"]
            scores = oracles_learned.keep_scores(parameters, x)[:, 0]
            expected = oracles.top_k(scores + train * noise[image], 4)
            np.testing.assert_array_equal(slots[image], expected)


def test_the_score_learns_from_the_kept_tokens():
    """Slope of the last bias: sum of (token . gradient) p (1 - p) over the kept."""
    inputs, variables = noisy_topk()
    weight = np.random.default_rng(1).normal(size=(2, 4, 8)).astype(np.float32)

    def objective(variables):
        result = NoisyTopK().apply(variables, inputs, COUNTS, True)
        state = moves.apply_result(initial_state(inputs.x, num_prefix=0), result)
        return jnp.sum(state.x * weight), result.slot_of_token

    gradients, slots = tiny_vit.compiled(jax.grad(objective, has_aux=True))(variables)
    expected = 0.0
    for image in range(2):
        x = np.asarray(inputs.x[image], float)
        scores = oracles_learned.keep_scores(variables["params"]["scores"], x)
        for token, slot in enumerate(slots[image]):
            if slot >= 0:
                p = np.exp(scores[token, 0])
                expected += x[token] @ weight[image, slot] * p * (1 - p)
    bias = gradients["params"]["scores"]["score"]["bias"]
    # The terms of x @ weight cancel.
    assert_close(bias, [expected, -expected], scale=1.0)
