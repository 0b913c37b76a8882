import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction.methods.dynamicvit import DynamicViT
from tests.helpers import masked_models, oracles, tiny_vit

FIELDS = "dynamicvit:keep_rate=0.6:blocks=(1,2)"  # 25, 15, 9


def masked_student(blocks=(1, 2), **options):
    model = tiny_vit.model(
        tiny_vit.with_fields(FIELDS, blocks=blocks), masked=True, **options
    )
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
    model, variables = masked_student(blocks=(0, 1), depth=2, **options)
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
