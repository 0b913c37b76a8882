"""DynamicViT: masks in training, removal in evaluation, and the learned share."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagepiece_jax.models.config import create_model
from imagepiece_jax.reduction import token_selector
from imagepiece_jax.reduction.layer_plan import build
from imagepiece_jax.reduction.methods.dynamicvit import DynamicViT
from tests import oracles, oracles_learned
from tests.models import masked, tiny

FIELDS = {"name": "dynamicvit", "keep_rate": 0.6, "blocks": (1, 2)}  # 25, 15, 9


def student(blocks=(1, 2), **options):
    """(evaluation model, training model, variables) of the tiny DynamicViT."""
    fields = FIELDS | {"blocks": blocks}
    model = tiny.model(fields, **options)
    return model, tiny.model(fields, masked=True, **options), tiny.variables(model)


@pytest.fixture(scope="module")
def training():
    """(training model, compiled (keys) -> Outputs for three images)."""
    _, model, variables = student()
    run = masked.train(model)
    return model, lambda keys: run(variables, tiny.images(), keys)


def lean(variables, to, spread=1.0):
    """Change both predictors: log odds of keeping are `to`, and so much `spread`."""
    _, selectors = split(variables)
    for selector in selectors.values():
        score = selector["scores"]["score"]
        score["kernel"] *= np.float32(spread)
        score["bias"] = np.float32([to / 2, -to / 2])
    return variables


# Counts and sizes


@pytest.mark.parametrize(
    "rate, tokens",
    [(0.7, [137, 96, 67]), (0.5, [98, 49, 24]), (0.1, [19, 1, 1]), (0.0, [1, 1, 1])],
)
def test_tokens_are_shares_of_the_first_ones(rate, tokens):
    plan = build(12, 196, DynamicViT(keep_rate=rate).steps(12))
    assert [plan[block].attn_tokens - 1 for block in (3, 6, 9)] == tokens
    assert plan[2].mlp_tokens == 197
    assert plan[-1].mlp_tokens - 1 == tokens[-1]


def test_in_training_all_tokens_stay():
    plan = build(12, 196, DynamicViT().steps(12), masked=True)
    assert {layer.attn_tokens for layer in plan} == {197}
    assert [bool(layer.counts) for layer in plan].count(True) == 3


def test_blocks_in_any_order_are_stages_by_depth():
    assert DynamicViT(blocks=(9, 3, 6)).steps(12) == DynamicViT(blocks=(3, 6, 9)).steps(
        12
    )


@pytest.mark.parametrize("name, each", [("deit_s", 241_250), ("deit_ti", 60_722)])
def test_published_parameters_of_a_predictor(name, each):
    reduction = {"name": "dynamicvit", "blocks": (0, 1)}
    for is_masked in (False, True):
        model = create_model(name, reduction=reduction, masked=is_masked, depth=2)
        params = tiny.shapes(model, 224)["params"]
        sizes = {k: tiny.count(v) for k, v in params.items() if "reducer" in k}
        assert sizes == {"reducer_0": each, "reducer_1": each}


# Evaluation


def test_evaluation_keeps_the_best_scores_of_what_is_left():
    model, _, variables = student()
    out = tiny.compiled(model.apply)(variables, tiny.images())
    chex.assert_shape(out.state.x, (3, 1 + 9, tiny.WIDTH))
    for block, result, taps in zip((1, 2), out.results, out.taps, strict=True):
        params = variables["params"][f"reducer_{block}"]["scores"]
        for image in range(3):
            scores = oracles_learned.keep_scores(
                params, np.asarray(taps.x[image], float)
            )
            want = oracles.top_k(scores[:, 0], result.n_out)
            np.testing.assert_array_equal(result.dest[image], want)


@pytest.mark.parametrize("is_masked", [False, True])
def test_a_rate_of_one_is_the_dense_model_bit_for_bit(is_masked):
    model = tiny.model(FIELDS | {"keep_rate": 1.0}, masked=is_masked)
    variables, images = tiny.variables(model), tiny.images()
    assert {"reducer_1", "reducer_2"} <= set(variables["params"])
    got = tiny.compiled(model.apply)(variables, images)
    want = tiny.compiled(tiny.model().apply)(variables, images)
    np.testing.assert_array_equal(got.logits, want.logits)


# Masks


def test_masks_shrink_and_are_zero_or_one(training):
    _, run = training
    out = run(masked.keys())
    first, second = (np.asarray(result.keep) for result in out.results)
    assert set(np.unique(first)) == set(np.unique(second)) == {0.0, 1.0}
    assert (second <= first).all() and (second < first).any()
    chex.assert_shape(out.state.x, (3, 1 + tiny.TOKENS, tiny.WIDTH))
    np.testing.assert_array_equal(out.state.mask, second)


@pytest.mark.parametrize("prefix", [1, 0])
def test_to_mask_is_to_remove(prefix):
    """Logits and live tokens equal those of a model that never had the others."""
    _, model, variables = student(class_token=bool(prefix))
    variables, images = lean(variables, 1.0), tiny.images(1)
    out = masked.train(model)(variables, images, masked.keys(1))
    masks = dict(zip((1, 2), (result.keep[0] for result in out.results), strict=True))
    live = np.flatnonzero(masks[2])
    assert 0 < len(live) < masks[1].sum() < tiny.TOKENS
    want = tiny.jit(masked.without(model, masks).apply)(variables, images)
    np.testing.assert_allclose(out.logits, want.logits, atol=1e-4)
    rows = out.tokens[0, prefix + live]
    np.testing.assert_allclose(rows, want.tokens[0, prefix:], atol=1e-4)


def test_draws_follow_their_keys(training):
    _, run = training
    masks = [np.asarray(run(masked.keys(seed=seed)).state.mask) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


@pytest.mark.parametrize("options", [{}, {"class_token": False, "dtype": "bfloat16"}])
def test_all_masked_is_finite_with_all_its_gradients(options):
    """A predictor that drops everything: the class token is left, if there is one."""
    _, model, variables = student(blocks=(0, 1), depth=2, **options)
    variables = lean(variables, -120.0)
    taught = masked.taught(tiny.model(depth=1, **options))

    def objective(params):
        out = model.apply({"params": params}, tiny.images(), True, masked.keys())
        terms = DynamicViT().loss(out, taught, model.plan)
        total = jnp.sum(out.logits**2) + sum(terms.values())
        return total, (out.logits, out.state.mask, terms)

    run = tiny.compiled(jax.grad(objective, has_aux=True))
    slopes, (logits, mask, terms) = run(variables["params"])
    chex.assert_tree_all_finite((slopes, logits))
    assert not np.asarray(mask).any()
    assert float(terms["tokens"]) == 0
    assert float(terms["ratio"]) == pytest.approx(0.6**2 + 0.36**2)


# Loss


def test_terms_of_the_loss(training):
    """Shares of both stages at .6 and .36; weights 2, .5 and .5 by default."""
    model, run = training
    out = run(masked.keys())
    taught = masked.taught(tiny.model(depth=1))
    weights = {"ratio_weight": 4.0, "kl_weight": 1.0, "token_weight": 0.0}

    @tiny.compiled
    def losses(out, taught):
        terms = DynamicViT().loss(out, taught, model.plan)
        assert list(terms) == ["ratio", "kl", "tokens"]
        return terms, DynamicViT(**weights).loss(out, taught, model.plan)

    terms, other = losses(out, taught)
    errors = [
        np.mean((np.asarray(result.keep).mean(axis=1) - target) ** 2)
        for result, target in zip(out.results, (0.6, 0.36), strict=True)
    ]
    live = np.asarray(out.state.mask) > 0.5
    gap = np.float64(out.tokens - taught.tokens)[:, 1:][live]
    wanted = {
        "ratio": 2 * np.mean(errors),
        "kl": 0.5 * oracles_learned.kl(out.logits, taught.logits),
        "tokens": 0.5 * np.mean(gap**2),
    }
    for name, value in wanted.items():
        assert value > 1e-3
        assert float(terms[name]) == pytest.approx(value, rel=1e-4)
    assert float(other["ratio"]) == pytest.approx(2 * wanted["ratio"], rel=1e-4)
    assert float(other["kl"]) == pytest.approx(2 * wanted["kl"], rel=1e-4)
    assert float(other["tokens"]) == 0


def test_predictors_learn_through_what_attention_reads_and_the_ratio():
    """After the last attention a mask changes no logit: only the ratio moves it."""
    _, model, variables = student()
    params, selectors = split(variables)
    early, late = DynamicViT(keep_rate=0.6, blocks=(1, 2)).steps(tiny.DEPTH)
    steps = (early, dataclasses.replace(late, site="mid"))
    model = model.clone(plan=build(tiny.DEPTH, tiny.TOKENS, steps, masked=True))

    def objectives(selectors):
        variables = {"params": params | selectors}
        out = model.apply(variables, tiny.images(), True, masked.keys())
        shares = [jnp.mean(result.keep, axis=1) for result in out.results]
        return jnp.stack(
            [jnp.sum(out.logits**2), token_selector.ratio_loss(shares, [0.1, 0.1])]
        )

    slopes = tiny.compiled(jax.jacrev(objectives))(selectors)
    found = {
        block: np.max(
            [
                np.abs(leaf).reshape(2, -1).max(axis=1)
                for leaf in jax.tree.leaves(slopes[f"reducer_{block}"])
            ],
            axis=0,
        )
        for block in (1, 2)
    }
    assert (found[1] > 1e-4).all()
    logits, ratio = found[2]
    assert logits == 0 and ratio > 1e-4


def split(variables):
    """(all parameters, those of the selectors)."""
    params = variables["params"]
    return params, {k: v for k, v in params.items() if k.startswith("reducer_")}


@functools.cache
def ratio_training():
    """(optimizer, compiled step of the selectors with the ratio term alone)."""
    _, model, variables = student()
    params, optimizer = variables["params"], optax.adam(0.02)

    def objective(selectors, seed):
        keys = {"reducer": jax.random.split(jax.random.key(seed), 3)}
        out = model.apply({"params": params | selectors}, tiny.images(), True, keys)
        shares = [jnp.mean(result.keep, axis=1) for result in out.results]
        return token_selector.ratio_loss(shares, [0.6, 0.36]), [
            jnp.mean(s) for s in shares
        ]

    @tiny.jit
    def step(selectors, state, seed):
        grad = jax.value_and_grad(objective, has_aux=True)
        (loss, shares), slope = grad(selectors, seed)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(selectors, updates), state, loss, shares

    return optimizer, step


@pytest.mark.parametrize("start", [-3.0, 3.0])
def test_a_few_steps_bring_the_shares_to_their_targets(start):
    """From nearly none and nearly all tokens live."""
    _, _, variables = student()
    _, selectors = split(lean(variables, start, spread=0.1))
    optimizer, step = ratio_training()
    state, history = jax.jit(optimizer.init)(selectors), []
    for seed in range(90):
        selectors, state, loss, shares = step(selectors, state, seed)
        history.append([loss, *shares])
    history = np.array(history, float)
    assert history[-10:, 0].mean() < 0.2 * history[:10, 0].mean()
    np.testing.assert_allclose(history[-10:, 1:].mean(axis=0), [0.6, 0.36], atol=0.06)


# Groups and mistakes


def test_groups_of_parameters():
    method = DynamicViT()
    predictor = method.param_groups("reducer_3/scores/norm/scale")
    assert predictor.lr is None and predictor.frozen_epochs == 0
    for name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
        assert method.param_groups(name).frozen_epochs == math.inf
    for path in ("blocks_3/attn/q/kernel", "head/bias", "patch_embed/proj/kernel"):
        group = method.param_groups(path)
        assert group.frozen_epochs == 5
        assert group.lr(2e-4, 1e-3) == pytest.approx(2e-6)
        assert group == method.param_groups("norm/scale")
    other = DynamicViT(backbone_lr=0.5, frozen_epochs=0).param_groups("norm/scale")
    assert (other.lr(2e-4, 1e-3), other.frozen_epochs) == (1e-4, 0)
    assert DynamicViT.needs_teacher
