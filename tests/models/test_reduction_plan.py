"""What a share of the dense model's MACs becomes: counts near it, or a sentence."""

import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import reduction_plan as plans
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.reduction_plan import TOLERANCE, with_plan
from imagepiece_jax.models.spec import (
    ModelSpec,
    create_model,
    size_of,
)
from imagepiece_jax.reduction import schedules
from imagepiece_jax.reduction.methods import METHODS, create
from imagepiece_jax.reduction.methods.diffrate import published
from imagepiece_jax.reduction.methods.method import ModelFacts
from imagepiece_jax.reduction.reduction import Reduction
from tests.models import tiny
from tests.refused import refused

SCHEDULES = [*schedules.SHAPES, "proportional-1"]
NAMES = sorted(set(METHODS) - {"none"})
MERGES = "or other merge_blocks and prune_blocks"
# What stands in the way of a schedule: blocks of its own only, squares, and in block 0
# the attention of the block before it.
REASONS = {
    **dict.fromkeys(("imagepiece", "imagepiece_dynamicvit", "imagepiece_tome"), MERGES),
    "token_pooling": "reads at block 0 the attention of the block before it",
    "grid_pooling": "allowed: squares, such as",
}


def dense(**fields):
    size = {"name": "deit_ti", "image_size": 224, "num_classes": 1000, "stem": "patch"}
    return create_model(**size | fields)


def at_cost(reduction, model=None, grid=(14, 14)):
    """(the reduction in counts, its share of the dense MACs, counts by block)."""
    model = model or dense()
    found = plans.at_cost(Reduction.read(reduction), model, grid)
    size = tuple(side * model.patch_size for side in grid)
    reduced = dense(depth=model.depth, image_size=size, reduction=found)
    share = model_macs(reduced, size) / model_macs(model, size)
    return found, share, [layer.mlp_tokens - 1 for layer in reduced.plan]


@pytest.mark.parametrize("counts", SCHEDULES)
@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_is_followed_or_refused_with_the_reason(name, counts):
    reduction = {"name": name, "macs": 0.6, "counts": counts}
    takes_any = name not in REASONS or name == "token_pooling"  # from block 1 on
    try:
        found, share, left = at_cost(reduction)
    except InputError as error:
        assert REASONS.get(name, "nearest cost") in str(error)
        assert counts != "proportional-1" or not takes_any
        return
    assert counts != "proportional-1" or takes_any
    assert abs(share - 0.6) <= TOLERANCE
    assert isinstance(found.method.counts, tuple)
    assert found.method.macs is None
    extra = np.array(left) - found.method.counts  # packages and fused tokens
    assert set(extra) <= {0, 1}
    assert left == sorted(left, reverse=True)
    # Counts are what they say, without a cost, too.
    again, _, same = at_cost(found)
    assert again == found and same == left


@pytest.mark.parametrize(
    "fields, field, text",
    [
        ({"macs": 1.5}, "macs", ""),
        ({"macs": -0.1}, "macs", ""),
        ({"macs": 0}, "macs", ""),
        ({"macs": 0.01}, "macs", "the nearest cost of 'tome' is 0."),
        ({"macs": 0.5, "counts": "linear"}, "counts", "allowed: const"),
        ({"counts": "constant"}, "counts", "which needs macs"),
        ({"macs": 0.5, "counts": (9,) * 12}, "counts", "which says what it costs"),
        ({"counts": (9, 8)}, "counts", "has 2 entries; allowed: 12"),
        ({"counts": (9, 8, 10)}, "counts", "rises at block 2, from 8 to 10"),
        ({"counts": (9, 8, 0)}, "counts", "has 0 tokens after block 2"),
        ({"counts": (200,) * 12}, "counts", "starts with 200 tokens; allowed: at mo"),
        ({"counts": (90,) * 12}, "counts", "block 0 of 196 before it; allowed: 98"),
        (
            {"macs": 0.5, "r": 9},
            "r",
            "but macs says how many tokens stay; allowed: one",
        ),
        (
            {"counts": (90,) * 12, "r": 9},
            "r",
            "but counts says how many",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistakes(fields, field, text):
    with refused(f"reduction.{field}", fields[field], text):
        dense(reduction={"name": "tome", **fields})


@pytest.mark.parametrize("name", NAMES)
def test_an_amount_that_a_cost_replaces_changes_nothing_and_is_refused(name):
    """All other amounts change something, and may stand beside a cost."""
    other = {
        **{"keep_rate": 0.6, "keep_rates": (0.7, 0.5, 0.3), "blocks": (2, 5, 8)},
        **{"block": 3, "r": 9, "r_list": (9, 5), "inflection": -0.5, "grid_size": 5},
        **{"num_tokens": 9, "merge_ratio": 0.2, "target": 2.3},
    }
    kind = METHODS[name]

    def scaled(**fields):
        method = kind(**fields).for_model(ModelFacts(12, 384, 196))
        return [method.scaled(strength, 12, 196) for strength in (0.2, 0.7)]

    for field in {*kind.amounts} - {"prune", "merge"}:
        changed = {field: other[field]}
        is_same = scaled(**changed) == scaled()
        assert is_same == (field in kind.found_for_macs), field
        typed = {"macs": 0.5, **changed}
        if field not in kind.found_for_macs:
            assert create(name, **typed).macs == 0.5
            continue
        with refused(field, other[field], "but macs says how many tokens stay"):
            create(name, **typed)


def test_a_schedule_that_names_no_block_of_the_model():
    reduction = {"name": "tome", "macs": 0.5, "counts": "stages-3-99"}
    with refused("reduction.counts", 99):
        dense(reduction=reduction)


def test_unusual_models():
    """All of the dense model's, one block, another grid, and lists as JSON has them."""
    _, share, left = at_cost({"name": "tome", "macs": 1.0})
    assert share == 1
    assert left == [196] * 12
    _, share, _ = at_cost({"name": "tome", "macs": 0.8}, dense(depth=1))
    assert abs(share - 0.8) <= TOLERANCE
    learned = {"name": "mctf", "macs": 0.5, "counts": "diffrate"}
    _, share, _ = at_cost(learned, dense(image_size=(128, 320)), (8, 20))
    assert abs(share - 0.5) <= TOLERANCE
    listed = [*np.arange(190, 70, -10)]
    found, _, left = at_cost({"name": "tome", "counts": listed})
    assert left == listed
    assert found.method.counts == (*listed,)


PUBLIC = ("vit_small_patch14_dinov2.lvd142m", "vit_large_patch16_224")
PUBLIC += ("vit_base_patch16_siglip_224", "vit_huge_patch14_224.mae")
SIZES = [("deit_ti", 192), ("deit_ti", 384), ("vit_mini", 16)]
SIZES += [(name, None) for name in PUBLIC]


@pytest.mark.parametrize("model, size", SIZES)
@pytest.mark.parametrize("name", sorted({*NAMES} - {"grid_pooling"}))
def test_every_method_has_a_shape_of_its_own_for_every_model(name, model, size):
    """Without a published list of the model's size, and with fewer blocks than 12."""
    sized = {} if size is None else {"image_size": size}
    model = ModelSpec(name=model, **sized)
    model = model.completed_by(size_of(model.name, ("image_size",)))
    cost = 0.55 if name == "imagepiece_tome" else 0.5  # the least of six blocks
    found = model.reduction_at_cost({"name": name, "macs": cost})
    share = model.gmacs(found) / model.gmacs()
    assert abs(share - cost) <= TOLERANCE
    assert found.method.macs is None


def test_lists_of_diffrate_are_stretched_to_sizes_that_have_none():
    """Of DeiT-S at 2.9 GMACs, whose 196 patches are 1369 of DINOv2, by hand."""
    model = create_model(PUBLIC[0])
    method = METHODS["diffrate"](macs=0.5)
    method = method.for_model(ModelFacts(12, 384, 1369))
    prune, merge = published("deit_s")[2.9]
    wanted = [1 + int(1369 * (tokens - 1) / 196 + 0.5) for tokens in prune]
    assert method.prune == tuple(wanted)
    assert method.merge[-1] == 1 + int(1369 * (merge[-1] - 1) / 196 + 0.5)
    plan = with_plan(model, Reduction.read("diffrate=0.5"), (37, 37)).plan
    left = [layer.mlp_tokens - 1 for layer in plan]
    assert left == sorted(left, reverse=True)
    assert left[-1] < 1369 / 20
    # Six blocks have every second entry.
    short = METHODS["diffrate"](macs=0.5).for_model(ModelFacts(6, 384, 196))
    assert (short.prune, short.merge) == (prune[1::2], merge[1::2])


@pytest.mark.parametrize("fields", [{"macs": 0.5}, {"counts": (25, 24, 24)}])
def test_a_cost_without_a_method_names_what_is_missing(fields):
    """Counts that leave every token are the dense model."""
    ((field, value),) = fields.items()
    with refused(f"reduction.{field}", value, "no method is named"):
        tiny.model({"name": "none", **fields})
    full = tiny.model({"name": "none", "counts": (25, 25, 25)})
    assert full.plan == tiny.model({"name": "none", "macs": 1.0}).plan


def test_a_label_of_a_cost_is_none_of_other_images():
    """Whose counts cost another share; a label changes no key."""
    vit = tiny.pretrained({"name": "evit", "macs": 0.7, "blocks": (1, 2)})
    assert {*vit.label.split()} == {"evit", "blocks=(1,2)", "macs=0.7"}
    assert "macs" not in vit.at_size(28).label
    switched = not vit.model.prop_attn
    weighted = vit.with_reduction(vit.reduction.fields | {"prop_attn": switched})
    assert weighted.label == f"{vit.label} prop_attn={switched}"
