"""DynamicViT: masks in training, removal in evaluation, and the learned share."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction import token_selector
from imagepiece_jax.reduction.layer_plan import build
from imagepiece_jax.reduction.methods.dynamicvit import DynamicViT
from tests import oracles_learned
from tests.models import masked, tiny

FIELDS = "dynamicvit:keep_rate=0.6:blocks=(1,2)"  # 25, 15, 9


def student(blocks=(1, 2), **options):
    """(training model, variables) of the tiny DynamicViT."""
    model = tiny.model(tiny.changed(FIELDS, blocks=blocks), masked=True, **options)
    return model, tiny.variables(model)


@pytest.fixture(scope="module")
def training():
    return masked.trained(FIELDS)


@pytest.mark.parametrize("is_masked", [False, True])
def test_a_rate_of_one_is_the_dense_model_bit_for_bit(is_masked):
    model = tiny.model(tiny.changed(FIELDS, keep_rate=1.0), masked=is_masked)
    variables = tiny.variables(model)
    images = tiny.images()
    assert {"reducer_1", "reducer_2"} <= set(variables["params"])
    got = tiny.compiled(model.apply)(variables, images)
    want = tiny.compiled(tiny.model().apply)(variables, images)
    np.testing.assert_array_equal(got.logits, want.logits)


@pytest.mark.parametrize("prefix", [1, 0])
def test_to_mask_is_to_remove(prefix):
    """Logits and live tokens equal those of a model that never had the others."""
    model, variables = student(class_token=bool(prefix))
    variables = masked.lean(variables, 1.0)
    images = tiny.images(1)
    out = masked.train(model)(variables, images, masked.keys(1))
    masks = dict(zip((1, 2), (result.keep[0] for result in out.results), strict=True))
    live = np.flatnonzero(masks[2])
    assert 0 < len(live) < masks[1].sum() < tiny.TOKENS
    want = tiny.jit(masked.without(model, masks).apply)(variables, images)
    np.testing.assert_allclose(out.logits, want.logits, atol=1e-4)
    rows = out.tokens[0, prefix + live]
    np.testing.assert_allclose(rows, want.tokens[0, prefix:], atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"class_token": False, "dtype": "bfloat16"}])
def test_all_masked_is_finite_with_all_its_gradients(options):
    """A predictor that drops everything: the class token is left, if there is one."""
    model, variables = student(blocks=(0, 1), depth=2, **options)
    variables = masked.lean(variables, -120.0)
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


def test_predictors_learn_by_attention_and_by_the_ratio():
    """After the last attention a mask changes no logit: only the ratio moves it."""
    model, variables = student()
    params = variables["params"]
    selectors = {k: v for k, v in params.items() if k.startswith("reducer_")}
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
