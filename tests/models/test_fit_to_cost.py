import json

import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.models.cost import share_of_dense
from imagepiece_jax.models.create import create_model, with_plan
from imagepiece_jax.models.fit_to_cost import COST_TOLERANCE, fit_to_cost
from imagepiece_jax.reduction import schedules
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.methods.diffrate import load_schedules
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.methods.recommended import replace_placeholder
from imagepiece_jax.reduction.methods.tome import ToMe
from imagepiece_jax.reduction.reduction import Reduction
from imagepiece_jax.weights.load import load
from imagepiece_jax.weights.save import save
from tests.helpers import named_models, tiny_vit
from tests.helpers.refused_calls import refused

LATER = "proportional-1"  # all tokens stay in block 0
NAMES = sorted(set(METHODS) - {"none"})
# Every schedule with one method, and every method with two schedules.
FOLLOWED = [("evit", schedule) for schedule in schedules.SCHEDULE_SHAPES]
FOLLOWED += [(name, schedule) for name in NAMES for schedule in ("constant", LATER)]
MERGES = "where the method's steps must leave"
# Methods refuse a schedule for these reasons: fixed blocks, squares, and attention of
# the previous block.
REASONS = {
    **dict.fromkeys(("imagepiece", "imagepiece_dynamicvit", "imagepiece_tome"), MERGES),
    "token_pooling": "at block 0 reads attention of the block before",
    "grid_pooling": "not a square number",
}


def image_tokens(model):
    return [plan.mlp_tokens - model.config.arch.prefix for plan in model.plan]


def fit_reduction(reduction, model=None):
    """The reduction as counts, its share of the dense MACs, and counts by block."""
    model = model or create_model("deit_ti")
    fitted = fit_to_cost(Reduction.read(reduction), model)
    reduced = with_plan(model, fitted)
    return fitted, share_of_dense(reduced), image_tokens(reduced)


@pytest.mark.parametrize("name, counts", sorted({*FOLLOWED}))
def test_a_schedule_is_followed_or_refused_with_a_reason(name, counts):
    reduction = f"{name}:macs=0.6:counts={counts}"
    takes_any = name not in REASONS or name == "token_pooling"  # from block 1 on
    try:
        fitted, share, left = fit_reduction(reduction)
    except InputError as error:
        assert REASONS.get(name, "nearest cost") in str(error)
        assert counts != LATER or not takes_any
        return
    assert counts != LATER or takes_any
    assert abs(share - 0.6) <= COST_TOLERANCE
    assert isinstance(fitted.method.counts, tuple)
    assert fitted.method.macs is None
    extra = np.array(left) - fitted.method.counts  # packages and fused tokens
    assert set(extra) <= {0, 1}
    assert left == sorted(left, reverse=True)
    # The fitted counts give the same plan.
    fitted_again, _, left_again = fit_reduction(fitted)
    assert fitted_again == fitted and left_again == left


@pytest.mark.parametrize("name", NAMES)
def test_a_cost_out_of_reach_is_refused(name):
    with pytest.raises(InputError, match="0.0001|tokens|reduc"):
        fit_reduction(f"{name}:macs=1e-4")
    with refused("counts", "12 blocks"):
        fit_reduction(f"{name}:macs=0.5:counts=stages-3-99")


@pytest.mark.parametrize("name", NAMES)
def test_only_the_amount_replaced_by_a_cost_is_refused(name):
    """Other amounts change the steps and may accompany a cost."""
    values = {"keep_rate": 0.6, "keep_rates": (0.7, 0.5, 0.3), "blocks": (2, 5, 8)}
    values |= {"block": 3, "r": 9, "inflection": -0.5, "grid_size": 5}
    values |= {"num_tokens": 9, "merge_ratio": 0.2, "target": 2.3}
    method_class = METHODS[name]

    def scaled(**fields):
        scale = method_class(**fields).scale_schedule
        return [scale(ratio, named_models.facts()) for ratio in (0.2, 0.7)]

    for field in {*method_class.amount_fields} - {"prune", "merge"}:
        amount = {field: values[field]}
        if field == method_class.ratio_field:
            with refused("and macs both decide the token counts"):
                method_class(macs=0.5, **amount)
        else:
            assert method_class(macs=0.5, **amount).macs == 0.5
            assert scaled(**amount) != scaled(), field


def test_all_macs_is_the_dense_model_and_counts_stay():
    for full in (1, "tome:macs=1.0"):
        _, share, left = fit_reduction(full)
        assert share == 1
        assert left == [196] * 12
    counts = (*range(190, 70, -10),)
    fitted, _, left = fit_reduction(ToMe(counts=counts))
    assert (fitted.method.counts, (*left,)) == (counts, counts)
    with refused("reduction 0.1", "0.147"):  # the nearest cost
        create_model("deit_ti", 0.1)


MODELS = ("vit_mini", "vit_small_patch14_dinov2.lvd142m", "vit_huge_patch14_224.mae")


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", sorted({*NAMES} - {"grid_pooling"}))
def test_every_method_reaches_a_cost_on_every_model(name, model_name):
    """Also without published counts for the model, and with six blocks."""
    cost = 0.55 if name == "imagepiece_tome" else 0.5  # its minimum with six blocks
    model = create_model(model_name)
    fitted, share, _ = fit_reduction(f"{name}:macs={cost}", model)
    assert abs(share - cost) <= COST_TOLERANCE
    assert fitted.method.macs is None


def test_diffrates_counts_scale_to_unpublished_sizes():
    """DeiT-S at 2.9 GMACs by hand: its 196 patches become DINOv2's 1369."""
    method = METHODS["diffrate"](macs=0.5)
    method = method.at_ratio(0.5, named_models.facts(patches=1369))
    prune, merge = load_schedules("deit_s")[2.9]
    expected = [1 + int(1369 * (tokens - 1) / 196 + 0.5) for tokens in prune]
    assert method.prune == tuple(expected)
    assert method.merge[-1] == 1 + int(1369 * (merge[-1] - 1) / 196 + 0.5)


def test_half_of_deit_by_hand(capsys):
    """Counts are 196 k, 196 k^2 and 196 k^3, rounded down, for k = .51.

    A reducing block's attention still has the tokens before the step.
    """
    model = create_model("deit_ti", 0.5)
    assert [int(196 * 0.51001**k) for k in (1, 2, 3)] == [99, 50, 26]
    counts = [196] * 3 + [99] * 3 + [50] * 3 + [26] * 3
    assert image_tokens(model) == counts

    def block(before, after):
        attention = 4 * 192**2 * before + 2 * 192 * before**2
        return attention + 8 * 192**2 * after

    tokens = [197, *(count + 1 for count in counts)]
    blocks = [block(*pair) for pair in zip(tokens, tokens[1:], strict=False)]
    ends = 196 * 768 * 192 + 192 * 1000  # stem and head
    share = (sum(blocks) + ends) / (12 * block(197, 197) + ends)
    assert share == pytest.approx(share_of_dense(model), abs=1e-3)
    assert abs(share - 0.5) <= COST_TOLERANCE
    assert "counts 99, 50, 26" in capsys.readouterr().err


@pytest.mark.parametrize(
    "macs, facts, name, fields",
    [
        (0.5, {}, "peaks", {"blocks": (3, 6, 9)}),
        # LV-ViT-S and M by DynamicViT's authors
        (0.5, {"depth": 20}, "peaks", {"blocks": (5, 10, 15)}),
        (0.5, {"depth": 2}, "peaks", {"blocks": (0, 1)}),
        (0.5, {"depth": 1}, "peaks", {"blocks": (0,)}),
        (0.5, {"pool": "mean"}, "tome", {}),  # a class token that no head reads
        (0.5, {"classes": 0}, "tome", {}),
        # Below .45 three blocks would remove too much at once.
        (0.45, {}, "peaks", {"blocks": (3, 6, 9)}),
        (0.44, {}, "peaks", {"counts": "proportional-1"}),
    ],
)
def test_recommended_method_of_each_kind_of_model(macs, facts, name, fields):
    method = replace_placeholder(Method(macs=macs), named_models.facts(**facts))
    assert type(method) is METHODS[name]
    assert vars(method).items() >= (fields | {"macs": macs}).items()


def test_a_cost_is_saved_as_method_and_counts(tmp_path, capsys):
    vit = tiny_vit.pretrained(arch={"pool": "token"}).with_reduction(0.7)
    assert vit.reduction.name == "peaks"
    (message,) = capsys.readouterr().err.splitlines()
    save(vit, tmp_path / "saved")
    content = json.loads((tmp_path / "saved" / "config.json").read_text())
    written = content["imagepiece_jax"]["reduction"]
    assert written == f"{vit.reduction}:prop_attn={vit.model.prop_attn}"
    again = load(tmp_path / "saved")
    assert (again.reduction, again.model.plan) == (vit.reduction, vit.model.plan)
    assert capsys.readouterr().err == ""  # nothing is chosen anew
    chosen_again = load(tmp_path / "saved", reduction=0.7)
    assert (chosen_again.reduction, chosen_again.label) == (vit.reduction, vit.label)
    assert capsys.readouterr().err == f"{message}\n"
