import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.models import create
from imagepiece_jax.reduction.methods.dynamicvit import DynamicViT
from imagepiece_jax.reduction.methods.imagepiece_dynamicvit import ImagePieceDynamicViT
from imagepiece_jax.reduction.methods.method import ParamGroup
from imagepiece_jax.reduction.methods.spvit import SPViT
from tests.helpers import masked_models, named_models, oracles, tiny_vit

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
        sizes = {k: tiny_vit.count(v) for k, v in params.items() if "reducer" in k}
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
