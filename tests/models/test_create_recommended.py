"""A share of the MACs alone resolves to the recommended method and its counts."""

import json

import pytest

from imagepiece_jax.models.cost import share_of_dense
from imagepiece_jax.models.create import COST_TOLERANCE, create_model
from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.methods.recommended import replace_placeholder
from imagepiece_jax.weights.load import load
from imagepiece_jax.weights.save import save
from tests.helpers import tiny_vit
from tests.helpers.named_models import facts
from tests.helpers.refused_calls import refused


def image_tokens(model):
    return [layer.mlp_tokens - model.config.arch.prefix for layer in model.plan]


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
    "fields, name, blocks",
    [
        ({}, "peaks", (3, 6, 9)),
        # LV-ViT-S and M by DynamicViT's authors.
        ({"depth": 20}, "peaks", (5, 10, 15)),
        ({"depth": 2}, "peaks", (0, 1)),
        ({"depth": 1}, "peaks", (0,)),
        ({"pool": "mean"}, "tome", None),  # a class token that no head reads
        ({"classes": 0}, "tome", None),
    ],
)
def test_recommended_method_of_each_kind_of_model(fields, name, blocks):
    method = replace_placeholder(Method(macs=0.5), facts(**fields))
    assert methods.method_name(method) == name
    assert getattr(method, "blocks", None) == blocks
    assert method.macs == 0.5


def test_low_costs_remove_equal_shares_in_all_later_blocks():
    """Below .45 three blocks would remove too much at once."""
    assert replace_placeholder(Method(macs=0.45), facts()).blocks == (3, 6, 9)
    assert replace_placeholder(Method(macs=0.44), facts()).counts == "proportional-1"


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


def test_a_cost_out_of_reach_names_the_nearest_one():
    with refused("reduction 0.1", "0.147"):
        create_model("deit_ti", 0.1)
