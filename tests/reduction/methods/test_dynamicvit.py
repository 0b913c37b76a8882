import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.models import create
from imagepiece_jax.reduction import moves, token_selector
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.dynamicvit import DynamicViT, KeepPredictor
from imagepiece_jax.reduction.methods.imagepiece_dynamicvit import (
    ImagePieceDynamicViT,
    NoisyTopK,
)
from imagepiece_jax.reduction.methods.method import ParamGroup
from imagepiece_jax.reduction.methods.spvit import SPViT
from imagepiece_jax.reduction.state import ReducerInputs, initial_state
from tests.helpers import (
    masked_models,
    named_models,
    oracles,
    oracles_learned,
    tiny_vit,
)
from tests.helpers.named_models import facts
from tests.helpers.reduction_steps import random_variables
from tests.helpers.rounding import assert_close

FIELDS = "dynamicvit:keep_rate=0.6:blocks=(1,2)"  # 25, 15, 9


def masked_student(reduction=FIELDS, **options):
    model = tiny_vit.model(reduction, masked=True, **options)
    return model, tiny_vit.variables(model)


@pytest.mark.parametrize("prefix", [1, 0])
def test_masking_equals_removing(prefix):
    model, variables = masked_student(class_token=bool(prefix))
    variables = masked_models.lean_selectors(variables, 1.0)
    images = tiny_vit.images(1)
    run = masked_models.training(model)
    masked = run(variables, images, masked_models.keys(1))
    first, second = masked.results
    masks = {1: first.keep[0], 2: second.keep[0]}
    live_tokens = np.flatnonzero(masks[2])
    assert 0 < len(live_tokens) < masks[1].sum() < tiny_vit.TOKENS
    shorter = masked_models.without_masked(model, masks)
    removed = tiny_vit.jit(shorter.apply)(variables, images)
    np.testing.assert_allclose(masked.logits, removed.logits, atol=1e-4)
    rows = masked.tokens[0, prefix + live_tokens]
    np.testing.assert_allclose(rows, removed.tokens[0, prefix:], atol=1e-4)


def test_gradients_stay_finite_when_all_tokens_are_masked():
    """A predictor that drops everything, in a model without a class token."""
    options = {"class_token": False, "dtype": "bfloat16"}
    reduction = "dynamicvit:keep_rate=0.6:blocks=(0,1)"
    model, variables = masked_student(reduction, depth=2, **options)
    variables = masked_models.lean_selectors(variables, -120.0)
    taught = masked_models.random_outputs(tiny_vit.model(depth=1, **options))

    def objective(params):
        out = model.apply(
            {"params": params}, tiny_vit.images(), True, masked_models.keys()
        )
        terms = DynamicViT().loss(out, taught, model.plan)
        total = jnp.sum(out.logits**2) + sum(terms.values())
        return total, (out.logits, out.state.mask, terms)

    run = tiny_vit.compiled(jax.grad(objective, has_aux=True))
    gradients, (logits, mask, terms) = run(variables["params"])
    chex.assert_tree_all_finite((gradients, logits))
    assert not np.asarray(mask).any()
    assert float(terms["tokens"]) == 0
    assert float(terms["ratio"]) == pytest.approx(0.6**2 + 0.36**2)


def test_terms_of_the_loss():
    """Target shares are .6 and .36; default weights are 2, .5 and .5."""
    model, run = masked_models.training_model(FIELDS)
    out = run(masked_models.keys())
    taught = masked_models.random_outputs(tiny_vit.model(depth=1))
    weights = {"ratio_weight": 4.0, "kl_weight": 1.0, "token_weight": 0.0}

    @tiny_vit.compiled
    def losses(out, taught):
        default_terms = DynamicViT().loss(out, taught, model.plan)
        assert list(default_terms) == ["ratio", "kl", "tokens"]
        return default_terms, DynamicViT(**weights).loss(out, taught, model.plan)

    default_terms, weighted_terms = losses(out, taught)
    first, second = (result.keep.mean(axis=1) for result in out.results)
    squared_errors = [np.mean((first - 0.6) ** 2), np.mean((second - 0.36) ** 2)]
    is_live = np.asarray(out.state.mask) > 0.5
    differences = np.float64(out.tokens - taught.tokens)[:, 1:][is_live]
    ratio = 2 * np.mean(squared_errors)
    kl = 0.5 * oracles.kl(taught.logits, out.logits).mean()
    assert min(ratio, kl) > 1e-3
    tokens = 0.5 * np.mean(differences**2)
    expected = dict(ratio=ratio, kl=kl, tokens=tokens)
    assert default_terms == pytest.approx(expected, rel=1e-4)
    doubled = dict(ratio=2 * ratio, kl=2 * kl, tokens=0)
    assert weighted_terms == pytest.approx(doubled, rel=1e-4)


SPVIT = "spvit:keep_rates=(0.6,0.3):blocks=(0,1)"


# SPViT: LN 2 d, then d^2 + d, d^2 / 2 + d / 2, d^2 / 8 + d / 4, d / 2 + 2 at d = 64:
# 6,930; votes of H heads: H (H // 2) + H // 2 + (H // 2) H + H.
@pytest.mark.parametrize(
    "name, reduction, num_parameters",
    [
        ("deit_s", "dynamicvit:blocks=(0,1)", 241_250),
        ("deit_ti", "dynamicvit:blocks=(0,1)", 60_722),
        ("deit_s", SPVIT, 6_930 + 45),
    ],
)
def test_selector_has_the_published_parameters(name, reduction, num_parameters):
    for is_masked in (False, True):
        config = named_models.config(name, depth=2)
        model = create.build_model(config, reduction, masked=is_masked)
        params = tiny_vit.shapes(model)["params"]
        names = [name for name in params if "reducer" in name]
        sizes = {name: tiny_vit.count(params[name]) for name in names}
        assert sizes == {"reducer_0": num_parameters, "reducer_1": num_parameters}


@pytest.mark.parametrize(
    "method, rates, half",
    [
        (DynamicViT, (5e-6, 2e-8), 1e-4),
        (ImagePieceDynamicViT, (5e-6, 2e-8), 1e-4),
        (SPViT, (1e-5, 2e-6), 2e-4),
    ],
)
def test_the_backbone_learns_slowly(method, rates, half):
    groups = method().param_groups
    assert groups("reducer_3/scores/norm/scale") == ParamGroup()
    for name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
        assert groups(name).frozen_epochs == math.inf
    backbone = groups("blocks_3/attn/q/kernel")
    assert backbone.frozen_epochs == 5
    scaled_rates = [float(backbone.lr(lr, 1e-3)) for lr in (5e-4, 2e-6)]
    assert scaled_rates == pytest.approx(rates)
    changed = method(backbone_lr=0.5, frozen_epochs=0).param_groups("norm/scale")
    assert float(changed.lr(2e-4, 1e-3)) == pytest.approx(half)
    assert changed.frozen_epochs == 0 and method.needs_teacher


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
    method = ImagePieceDynamicViT()
    plan = method.plan(facts(), masked=True)
    expected = np.cumprod([132 / 165, 89 / 111, 60 / 74]).tolist()
    assert_close(method.target_kept_shares(plan), expected, units=1)
    for fields in ({"keep_rate": 1.0}, {"mode": "topk"}):
        plan = ImagePieceDynamicViT(**fields).plan(facts(), masked=True)
        assert method.target_kept_shares(plan) == []


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
