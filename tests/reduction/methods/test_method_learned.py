import math

import numpy as np
import pytest

from imagepiece_jax.models import create
from imagepiece_jax.reduction.methods.dynamicvit import DynamicViT
from imagepiece_jax.reduction.methods.imagepiece_dynamicvit import ImagePieceDynamicViT
from imagepiece_jax.reduction.methods.spvit import SPViT
from tests.helpers import named_models, oracles, oracles_learned, tiny_vit

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
        model = create.build_model(
            named_models.config(name, depth=2), reduction, masked=is_masked
        )
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
    selector = groups("reducer_3/scores/norm/scale")
    assert selector.lr is None
    assert selector.frozen_epochs == 0
    for name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
        assert groups(name).frozen_epochs == math.inf
    backbone = groups("blocks_3/attn/q/kernel")
    assert backbone.frozen_epochs == 5
    scaled_rates = [float(backbone.lr(lr, 1e-3)) for lr in (5e-4, 2e-6)]
    assert scaled_rates == pytest.approx(rates)
    for path in ("head/bias", "patch_embed/proj/kernel", "norm/scale"):
        assert groups(path) == backbone
    changed = method(backbone_lr=0.5, frozen_epochs=0).param_groups("norm/scale")
    assert float(changed.lr(2e-4, 1e-3)) == pytest.approx(half)
    assert changed.frozen_epochs == 0 and method.needs_teacher


def test_evaluation_keeps_the_highest_scores():
    """25 tokens, merged 23, pruned 14."""
    fields = "merge_ratio=0.06:keep_rate=0.6:merge_blocks=(0,):prune_blocks=(1,)"
    model = tiny_vit.model(f"imagepiece_dynamicvit:{fields}", depth=2)
    variables = tiny_vit.variables(model)
    out = tiny_vit.compiled(model.apply)(variables, tiny_vit.images())
    blocks = [block for block, layer in enumerate(model.plan) if layer.counts]
    for block, result, inputs in zip(
        blocks, out.results, out.reducer_inputs, strict=True
    ):
        params = variables["params"].get(f"reducer_{block}")
        for image in range(3) if params else ():
            tokens = np.asarray(inputs.x[image], float)
            scores = oracles_learned.keep_scores(params["scores"], tokens)
            best_slots = oracles.top_k(scores[:, 0], result.n_out)
            np.testing.assert_array_equal(result.slot_of_token[image], best_slots)
    assert params
    assert out.state.x.shape[1] == 1 + 14
