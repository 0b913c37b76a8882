"""A share of the MACs alone: the recommended method, resolved wherever it is kept."""

import json
import re

import numpy as np
import pytest

from imagepiece_jax.deploy.weights.load import load
from imagepiece_jax.deploy.weights.save import save
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import reduction_plan
from imagepiece_jax.models.cost import share_of_dense
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.reduction_plan import TOLERANCE
from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.methods.method import Method, ModelFacts
from imagepiece_jax.reduction.methods.recommended import recommendation, recommended
from imagepiece_jax.reduction.reduction import Reduction
from tests.models import tiny
from tests.models.make import create_model


def at_cost(reduction):
    return reduction_plan.at_cost(Reduction.read(reduction), create_model("deit_ti"))


def image_tokens(model):
    return [layer.mlp_tokens - model.config.arch.prefix for layer in model.plan]


def test_half_of_deit_by_hand(capsys):
    """Counts of 196 k, 196 k^2 and 196 k^3 tokens, rounded down, for k = .51.

    A block of n tokens and the class token, of width 192, has 12 (192 n')^2 / n' for
    its matrices and 2 n'^2 192 for its maps, with n' = n + 1: MACs of 197, 100, 51 and
    27 tokens in the blocks between the three that reduce, whose attention still has
    the tokens before.
    """
    model = create_model("deit_ti", reduction=0.5)
    first = int(196 * 0.51001**1)
    second = int(196 * 0.51001**2)
    third = int(196 * 0.51001**3)
    assert (first, second, third) == (99, 50, 26)
    counts = [196] * 3 + [first] * 3 + [second] * 3 + [third] * 3
    assert image_tokens(model) == counts

    def block(before, after):
        attention = 4 * 192**2 * before + 2 * 192 * before**2
        return attention + 8 * 192**2 * after

    tokens = [197, *(count + 1 for count in counts)]
    blocks = [block(*pair) for pair in zip(tokens, tokens[1:], strict=False)]
    ends = 196 * 768 * 192 + 192 * 1000  # stem and head
    share = (sum(blocks) + ends) / (12 * block(197, 197) + ends)
    assert share == pytest.approx(share_of_dense(model), abs=1e-3)
    assert abs(share - 0.5) <= TOLERANCE
    said = capsys.readouterr().err.splitlines()[0]
    blocks = "attended in blocks 3, 6, 9"
    assert said == f"{blocks}; counts 99, 50, 26; {share:.2f} of the MACs"


def facts(**fields):
    return ModelFacts(**{"depth": 12, "embed_dim": 192, "patches": 196} | fields)


@pytest.mark.parametrize(
    "fields, name, blocks",
    [
        ({}, "attended", (3, 6, 9)),
        # LV-ViT-S and M by DynamicViT's authors.
        ({"depth": 16}, "attended", (4, 8, 12)),
        ({"depth": 20}, "attended", (5, 10, 15)),
        ({"depth": 2}, "attended", (0, 1)),
        ({"depth": 1}, "attended", (0,)),
        ({"pool": "mean"}, "tome", None),  # a class token that no head reads
        ({"pool": "map", "class_token": False}, "tome", None),
        ({"classes": 0}, "tome", None),
        ({"classes": 0, "pool": "mean", "class_token": False}, "tome", None),
    ],
)
def test_the_method_of_each_kind_of_model(fields, name, blocks):
    method = recommended(Method(macs=0.5), facts(**fields))
    assert methods.name_of(method) == recommendation(facts(**fields)).name == name
    assert getattr(method, "blocks", None) == blocks
    assert method.macs == 0.5


def test_with_few_macs_every_block_but_the_first_removes_the_same_share(capsys):
    """As from .45 down, where three blocks would have to remove too much at once."""
    assert recommended(Method(macs=0.45), facts()).blocks == (3, 6, 9)
    method = recommended(Method(macs=0.44), facts())
    assert (methods.name_of(method), method.counts) == ("attended", "proportional-1")
    counts = image_tokens(create_model("deit_ti", reduction=0.4))
    assert counts[0] == 196
    kept = [after / before for before, after in zip(counts, counts[1:], strict=False)]
    assert min(kept) > 0.77
    assert max(kept) < 0.80
    assert capsys.readouterr().err.startswith("attended in blocks 1, 2, 3, 4,")
    asked = "0.4:counts=stages-3-6-9"
    assert len({*at_cost(asked).method.counts[3:6]}) == 1


@pytest.mark.parametrize("depth", [2, 3])
def test_few_macs_of_a_shallow_model_need_its_first_block(depth):
    """Where the first block keeps all tokens, it costs a half or a third by itself."""
    model = create_model("deit_ti", 0.3, depth=depth)
    assert image_tokens(model)[0] < 196
    assert abs(share_of_dense(model) - 0.3) <= TOLERANCE


SIZES = ["deit_ti", "vit_large_patch16_224.mae", "vit_small_patch14_dinov2.lvd142m"]
SIZES += ["vit_base_patch16_siglip_224", "vit_mini"]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("cost", [0.75, 0.6, 0.5, 0.4])
def test_every_kind_of_model_has_the_cost_that_it_is_given(name, cost):
    model = create_model(name, cost, image_size=16 if name == "vit_mini" else 224)
    assert model.reduction.method.macs is None
    assert abs(share_of_dense(model) - cost) <= TOLERANCE


@pytest.mark.parametrize("classes", [tiny.CLASSES, 0])
def test_it_is_kept_as_the_method_and_its_counts(classes, tmp_path, capsys):
    """By a Pretrained, its folder, and what is loaded from there; said each time."""
    arch = {"arch": {"pool": "token"}}
    dense = tiny.pretrained(num_classes=classes, **arch)
    vit = dense.with_reduction(0.7)
    name = "attended" if classes else "tome"
    assert vit.reduction.name == name
    (said,) = capsys.readouterr().err.splitlines()
    left = ", ".join(map(str, image_tokens(vit.model)))
    found = re.fullmatch(
        f"{name} in every block; counts {left}; (.*) of the MACs", said
    )
    assert float(found[1]) == round(vit.gmacs / dense.gmacs, 2)
    save(tmp_path / "saved", vit)
    text = (tmp_path / "saved" / "config.json").read_text()
    prop_attn = vit.model.prop_attn
    written = json.loads(text)["imagepiece_jax"]["reduction"]
    assert written == f"{vit.reduction}:prop_attn={prop_attn}"
    again = load(tmp_path / "saved")
    assert again.reduction == vit.reduction
    assert again.model.plan == vit.model.plan
    assert capsys.readouterr().err == ""  # nothing is chosen anew
    other = load(tmp_path / "saved", reduction=0.7)
    assert (other.reduction, other.label) == (vit.reduction, vit.label)
    assert capsys.readouterr().err == f"{said}\n"
    assert load(tmp_path / "saved", reduction="none").model.plan == dense.model.plan
    model = tiny.model(0.7, num_classes=classes, **arch)
    assert Pretrained(model, vit.variables).reduction == vit.reduction


NUMBERS = [0.625, np.float64(0.625), np.float32(0.625), np.float16(0.625)]
NUMBERS += ["0.625", ".625"]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_a_share_may_be_numpys_or_a_text(value):
    found = at_cost(value)
    assert found == at_cost(0.625)
    assert type(found.method.keep_rate) is float


@pytest.mark.parametrize("value", [1, 1.0, "1", "tome:macs=1"])
def test_all_of_the_macs_are_all_tokens(value):
    assert image_tokens(create_model("deit_ti", value)) == [196] * 12


def test_what_is_out_of_reach_is_told_the_nearest_cost():
    with pytest.raises(InputError, match="^reduction 0.1: .* is 0.147"):
        create_model("deit_ti", reduction=0.1)
