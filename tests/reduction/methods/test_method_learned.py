import math

import pytest

from imagepiece_jax.models import create
from imagepiece_jax.reduction.methods.dynamicvit import DynamicViT
from imagepiece_jax.reduction.methods.imagepiece_dynamicvit import ImagePieceDynamicViT
from imagepiece_jax.reduction.methods.method import ParamGroup
from imagepiece_jax.reduction.methods.spvit import SPViT
from tests.helpers import named_models, tiny_vit

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
