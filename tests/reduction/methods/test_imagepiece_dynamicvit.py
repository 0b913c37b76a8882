"""ImagePiece's merges and DynamicViT's learned prunes in one model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction import moves, token_selector
from imagepiece_jax.reduction.block_plan import StepCounts, plan_blocks
from imagepiece_jax.reduction.methods.imagepiece_dynamicvit import (
    ImagePieceDynamicViT,
    NoisyTopK,
)
from imagepiece_jax.reduction.state import (
    Assignment,
    Masking,
    ReducerInputs,
    initial_state,
)
from tests.helpers import masked_models, oracles, oracles_learned, tiny_vit
from tests.helpers.named_models import facts
from tests.helpers.reduction_steps import random_variables
from tests.helpers.rounding import assert_close

MASK = (  # 25 image tokens; merged 23; pruned 14; merged 13
    "imagepiece_dynamicvit:keep_rate=0.6:merge_ratio=0.06:mode=mask"
    ":merge_blocks=(0,2):prune_blocks=(1,)"
)


@pytest.fixture(scope="module")
def with_masks():
    return masked_models.trained(MASK)


def test_merges_look_at_as_many_candidates_as_in_evaluation():
    steps = ImagePieceDynamicViT().steps(facts())
    plans = (plan_blocks(12, 196, steps, masked=m) for m in (False, True))
    small, large = ([p.counts and p.counts.candidates for p in plan] for plan in plans)
    assert small == large and small[3] == 39  # exact_floor(.3 * 132)
    plan = plan_blocks(12, 196, steps)
    assert (plan[2].attn_tokens, plan[2].mlp_tokens) == (166, 133)


@pytest.mark.parametrize("score", ["class", "class_and_mean"])
def test_masked_tokens_are_never_merged(with_masks, score):
    _, run = with_masks
    if score != "class":
        _, run = masked_models.trained(f"{MASK}:score={score}")
    out = run(masked_models.keys())
    first, second, third = out.results
    assert isinstance(second, Masking)
    assert isinstance(third, Assignment)
    assert second.keep.shape == (3, 23)
    assert out.state.mask.shape == (3, 22)
    keep = np.asarray(second.keep)
    dest = np.asarray(third.slot_of_token)
    for image in range(3):
        assert 4 < keep[image].sum() < 20  # more than the candidates of the merge
        together = oracles.count_sources(dest[image], 22)[dest[image]]
        assert (together > 1).sum() == 2
        assert (keep[image][together > 1] == 1).all()
        live = [keep[image][dest[image] == slot].max() for slot in range(22)]
        np.testing.assert_array_equal(out.state.mask[image], live)


def test_masked_training_has_terms_for_all(with_masks):
    """The ratio's target is 14 of 23."""
    model, run = with_masks
    out = run(masked_models.keys())
    taught = masked_models.taught(tiny_vit.model(depth=1))
    loss = ImagePieceDynamicViT().loss
    terms = tiny_vit.compiled(lambda *both: loss(*both, model.plan))(out, taught)
    share = np.asarray(out.results[1].keep).mean(axis=1)
    ratio = 2 * np.mean((share - 14 / 23) ** 2)
    kl = 0.5 * oracles_learned.kl(out.logits, taught.logits)
    assert float(terms["ratio"]) == pytest.approx(ratio, rel=1e-4)
    assert float(terms["kl"]) == pytest.approx(kl, rel=1e-4)
    assert float(terms["tokens"]) > 0.01  # test_token_selector


def test_targets_are_what_evaluation_keeps():
    """132 of 165, then 89 of 111, then 60 of 74; some have none."""
    plan = plan_blocks(12, 196, ImagePieceDynamicViT().steps(facts()), masked=True)
    wanted = np.cumprod([132 / 165, 89 / 111, 60 / 74]).tolist()
    method = ImagePieceDynamicViT()
    assert_close(method.target_shares(plan), wanted, units=1)
    for fields in ({"keep_rate": 1.0}, {"mode": "topk"}):
        steps = ImagePieceDynamicViT(**fields).steps(facts())
        assert method.target_shares(plan_blocks(12, 196, steps, masked=True)) == []
    assert float(token_selector.ratio_loss([], [])) == 0


COUNTS = StepCounts(n_in=9, n_out=4)


def noisy_topk(spread=1.0):
    """(inputs of nine tokens, variables of a NoisyTopK)."""
    x = np.random.default_rng(0).normal(size=(2, 9, 8)).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), 2)
    inputs = ReducerInputs(x=x, size=np.ones((2, 9), np.float32), rng=keys)
    variables = random_variables(NoisyTopK(), inputs, COUNTS)
    score = variables["params"]["scores"]["score"]
    score["kernel"] *= np.float32(spread)
    # Far below 0 a log probability is the score itself: none are alike.
    score["bias"] -= np.float32([100 * (spread - 1), 0])
    return inputs, variables


def test_noise_decides_between_scores_that_are_close():
    """Spread out a lot, the scores alone decide, as in evaluation."""
    run = tiny_vit.compiled(NoisyTopK().apply, static_argnums=(2, 3))
    for spread, same in ((1.0, False), (1e5, True)):
        inputs, variables = noisy_topk(spread)
        trained = run(variables, inputs, COUNTS, True)
        assert (trained.weight == 1).all()
        noisy = trained.slot_of_token
        plain = run(variables, inputs, COUNTS, False).slot_of_token
        assert (noisy == plain).all() == same
        for row in noisy:
            assert sorted(row[row >= 0]) == [0, 1, 2, 3]


def test_the_score_learns_from_the_kept_tokens():
    """Slope of the last bias: sum of (token . gradient) p (1 - p) over the kept."""
    inputs, variables = noisy_topk()
    weight = np.random.default_rng(1).normal(size=(2, 4, 8)).astype(np.float32)

    def objective(variables):
        result = NoisyTopK().apply(variables, inputs, COUNTS, True)
        state = moves.apply_result(initial_state(inputs.x, num_prefix=0), result)
        return jnp.sum(state.x * weight), result.slot_of_token

    slopes, dest = tiny_vit.compiled(jax.grad(objective, has_aux=True))(variables)
    wanted = 0.0
    for image in range(2):
        x = np.asarray(inputs.x[image], float)
        scores = oracles_learned.keep_scores(variables["params"]["scores"], x)
        for token, slot in enumerate(dest[image]):
            if slot >= 0:
                p = np.exp(scores[token, 0])
                wanted += x[token] @ weight[image, slot] * p * (1 - p)
    bias = slopes["params"]["scores"]["score"]["bias"]
    assert_close(bias, [wanted, -wanted], scale=1.0)  # of x @ weight: terms cancel
