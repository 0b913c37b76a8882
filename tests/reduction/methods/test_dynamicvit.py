"""DynamicViT: masks in training, removal in evaluation, and the learned share."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction.methods.dynamicvit import DynamicViT
from tests.helpers import masked_models, oracles_learned, tiny_vit

FIELDS = "dynamicvit:keep_rate=0.6:blocks=(1,2)"  # 25, 15, 9


def student(blocks=(1, 2), **options):
    model = tiny_vit.model(
        tiny_vit.changed(FIELDS, blocks=blocks), masked=True, **options
    )
    return model, tiny_vit.variables(model)


@pytest.fixture(scope="module")
def training():
    return masked_models.trained(FIELDS)


@pytest.mark.parametrize("prefix", [1, 0])
def test_to_mask_is_to_remove(prefix):
    model, variables = student(class_token=bool(prefix))
    variables = masked_models.lean(variables, 1.0)
    images = tiny_vit.images(1)
    out = masked_models.train(model)(variables, images, masked_models.keys(1))
    masks = dict(zip((1, 2), (result.keep[0] for result in out.results), strict=True))
    live = np.flatnonzero(masks[2])
    assert 0 < len(live) < masks[1].sum() < tiny_vit.TOKENS
    want = tiny_vit.jit(masked_models.without(model, masks).apply)(variables, images)
    np.testing.assert_allclose(out.logits, want.logits, atol=1e-4)
    rows = out.tokens[0, prefix + live]
    np.testing.assert_allclose(rows, want.tokens[0, prefix:], atol=1e-4)


def test_all_masked_is_finite_with_all_its_gradients():
    """A predictor that drops everything, in a model without a class token."""
    options = {"class_token": False, "dtype": "bfloat16"}
    model, variables = student(blocks=(0, 1), depth=2, **options)
    variables = masked_models.lean(variables, -120.0)
    taught = masked_models.taught(tiny_vit.model(depth=1, **options))

    def objective(params):
        out = model.apply(
            {"params": params}, tiny_vit.images(), True, masked_models.keys()
        )
        terms = DynamicViT().loss(out, taught, model.plan)
        total = jnp.sum(out.logits**2) + sum(terms.values())
        return total, (out.logits, out.state.mask, terms)

    run = tiny_vit.compiled(jax.grad(objective, has_aux=True))
    slopes, (logits, mask, terms) = run(variables["params"])
    chex.assert_tree_all_finite((slopes, logits))
    assert not np.asarray(mask).any()
    assert float(terms["tokens"]) == 0
    assert float(terms["ratio"]) == pytest.approx(0.6**2 + 0.36**2)


def test_terms_of_the_loss(training):
    """Shares of both stages at .6 and .36; weights 2, .5 and .5 by default."""
    model, run = training
    out = run(masked_models.keys())
    taught = masked_models.taught(tiny_vit.model(depth=1))
    weights = {"ratio_weight": 4.0, "kl_weight": 1.0, "token_weight": 0.0}

    @tiny_vit.compiled
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
    ratio = 2 * np.mean(errors)
    kl = 0.5 * oracles_learned.kl(out.logits, taught.logits)
    assert min(ratio, kl) > 1e-3
    tokens = 0.5 * np.mean(gap**2)
    assert terms == pytest.approx(dict(ratio=ratio, kl=kl, tokens=tokens), rel=1e-4)
    doubled = dict(ratio=2 * ratio, kl=2 * kl, tokens=0)
    assert other == pytest.approx(doubled, rel=1e-4)
