"""Do recipes name the right blocks, and refuse fields that make no sense?"""

import inspect

import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.flops import macs
from imagepiece_jax.reduction.methods import METHODS, steps
from imagepiece_jax.reduction.schedule import build

DEPTH = 10


@pytest.mark.parametrize(
    "schedule, depth, merge, prune",
    [
        ("B", 12, (0, 1, 3, 4, 6, 7), (2, 5, 8)),
        ("A", 12, (1, 2, 4, 5, 7, 8), (3, 6, 9)),
        ("B", 4, (0, 1), (2,)),
        ("A", 4, (1, 2), (3,)),
        ("B", 6, (0, 1), (2,)),
        ("B", 8, (0, 1, 3, 4), (2, 5)),
        ("B", 16, (0, 1, 3, 4, 6, 7, 9, 10), (2, 5, 8, 11)),
    ],
)
def test_imagepiece_merges_twice_and_prunes_once_a_cycle(schedule, depth, merge, prune):
    found = METHODS["imagepiece"].recipe(depth, schedule=schedule)
    rules = {step.block: step.rule for step in found}
    assert rules == {**dict.fromkeys(merge, "merge"), **dict.fromkeys(prune, "keep")}
    assert all(step.site == "mid" for step in found)
    build(depth, 196, found)


def test_named_blocks_override_the_schedule():
    found = METHODS["imagepiece"].recipe(
        3, merge_blocks=(1,), prune_blocks=(0, 2), merge_ratio=0.15, keep_rate=0.6
    )
    assert [(step.block, step.rule) for step in found] == [
        (0, "keep"),
        (1, "merge"),
        (2, "keep"),
    ]
    assert [step.amount for step in found] == [0.6, (0.15, 0.3, "all"), 0.6]


def test_a_schedule_needs_four_blocks():
    with pytest.raises(InputError, match="depth of 4.*found 3.*merge_blocks"):
        METHODS["imagepiece"].recipe(3)


RATE_FIELDS = [
    (name, field)
    for name, method in METHODS.items()
    for field in inspect.signature(method.recipe).parameters
    if field.endswith(("_rate", "_ratio"))
]


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", True, None])
@pytest.mark.parametrize("name, field", RATE_FIELDS)
def test_a_rate_outside_zero_to_one_is_named(name, field, value):
    with pytest.raises(InputError, match=rf"reduction\.{field} is .*0 to 1"):
        METHODS[name].recipe(DEPTH, **{field: value})


def test_rates_are_found():
    """The test above finds its fields by their names: it must find these."""
    for name in ("evit", "random", "dynamicvit"):
        assert (name, "keep_rate") in RATE_FIELDS
    for field in ("keep_rate", "merge_ratio", "candidate_ratio"):
        assert ("imagepiece", field) in RATE_FIELDS
        assert ("imagepiece_tome", field) in RATE_FIELDS
        assert ("imagepiece_dynamicvit", field) in RATE_FIELDS


BLOCK_FIELDS = [
    ("imagepiece", "prune_blocks"),
    ("evit", "blocks"),
    ("random", "blocks"),
    ("imagepiece_tome", "prune_blocks"),
    ("dynamicvit", "blocks"),
    ("imagepiece_dynamicvit", "prune_blocks"),
]


@pytest.mark.parametrize("name, field", [*BLOCK_FIELDS, ("spvit", "blocks")])
@pytest.mark.parametrize("blocks", [3, ("a", 3), (1.5,), (True,), None])
def test_blocks_that_are_none_are_named(name, field, blocks):
    if blocks is None and name.startswith("imagepiece"):
        return  # the schedule decides
    with pytest.raises(InputError, match=rf"reduction\.{field} is .*whole numbers"):
        METHODS[name].recipe(DEPTH, **{field: blocks})


@pytest.mark.parametrize("name, field", BLOCK_FIELDS)
@pytest.mark.parametrize("blocks", [(12,), (-1,), (3, 3)])
def test_blocks_that_do_not_fit_are_refused(name, field, blocks):
    found = METHODS[name].recipe(DEPTH, **{field: blocks})
    with pytest.raises(InputError, match=rf"block {blocks[0]}\b"):
        build(DEPTH, 196, found)


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("schedule", "C", "'A'.*'B'"),
        ("merge_base", "some", "'all'.*'candidates'"),
        ("order", "random", "'descending'.*'ascending'"),
        ("parity", 2, "0.*1"),
        ("metric", "keys", "'key'.*'query'.*'value'.*'token'"),
    ],
)
def test_an_unknown_choice_lists_the_known_ones(field, value, allowed):
    with pytest.raises(InputError, match=rf"{field} is {value!r}.*{allowed}"):
        METHODS["imagepiece"].recipe(DEPTH, **{field: value})


@pytest.mark.parametrize("value", ["yes", "false", 1, None])
@pytest.mark.parametrize(
    "name, field",
    [
        ("evit", "fuse_token"),
        ("imagepiece", "size_weighting"),
        ("spvit", "share_heads"),
    ],
)
def test_a_switch_is_true_or_false(name, field, value):
    with pytest.raises(InputError, match=rf"{field} is {value!r}; .*True, False"):
        METHODS[name].recipe(DEPTH, **{field: value})


ROUNDED = [name for name, m in METHODS.items() if "round_to" in m.fields_of("recipe")]


def test_methods_that_round():
    combined = {"imagepiece_tome", "imagepiece_dynamicvit"}
    assert set(ROUNDED) == {"imagepiece", "evit", "tome"} | combined


@pytest.mark.parametrize("name", ROUNDED)
def test_counts_are_rounded_where_asked_for_and_only_there(name):
    recipe = METHODS[name].recipe
    assert {step.round_to for step in recipe(DEPTH)} == {0}
    assert {step.round_to for step in recipe(DEPTH, round_to=8)} == {8}
    plan = build(DEPTH, 196, recipe(DEPTH, round_to=8))
    assert all(layer.mlp_tokens % 8 == 0 for layer in plan if layer.counts)
    with pytest.raises(InputError, match="reduction.round_to is -1; .*from 0"):
        recipe(DEPTH, round_to=-1)


# Fewer and larger reductions, for docs/schedules.md: the cost stays within 1 %.
@pytest.mark.parametrize(
    "fields, tokens",
    [
        (
            {"merge_blocks": (0, 3, 6), "merge_ratio": 0.15},
            [168, 168, 135, 115, 115, 93, 80, 80, 65, 65, 65, 65],
        ),
        (
            {"merge_blocks": (0, 3), "prune_blocks": (2, 5)}
            | {"merge_ratio": 0.2, "candidate_ratio": 0.4},
            [158, 158, 127, 102, 102, 82, 82, 82, 82, 82, 82, 82],
        ),
        (
            {"merge_blocks": (0,), "prune_blocks": (2, 6)}
            | {"merge_ratio": 0.15, "keep_rate": 0.65},
            [168, 168, 110, 110, 110, 110, 72, 72, 72, 72, 72, 72],
        ),
    ],
)
def test_fewer_and_larger_steps_cost_the_same(fields, tokens):
    plans = [
        build(12, 196, METHODS["imagepiece"].recipe(12, **f)) for f in ({}, fields)
    ]
    assert [layer.mlp_tokens for layer in plans[1]] == tokens
    nine, fewer = (macs(plan, embed_dim=384, num_heads=6) for plan in plans)
    assert fewer == pytest.approx(nine, rel=0.01)


def test_numbers_of_numpy_are_numbers():
    for name, fields in (
        ("evit", {"keep_rate": np.float32(0.5), "blocks": tuple(np.arange(3))}),
        ("tome", {"r": np.int64(5), "inflection": np.float64(0.5)}),
    ):
        plain = {k: v if isinstance(v, tuple) else v.item() for k, v in fields.items()}
        assert METHODS[name].recipe(DEPTH, **fields) == METHODS[name].recipe(
            DEPTH, **plain
        )


def test_unknown_names_list_the_known_ones():
    with pytest.raises(InputError, match="'tokenizer'.*evit.*imagepiece.*none"):
        steps(DEPTH, name="tokenizer")
    with pytest.raises(InputError, match="keep_ratio.*'evit'.*keep_rate.*fuse_token"):
        steps(DEPTH, name="evit", keep_ratio=0.7)
    assert steps(DEPTH, name="evit") == METHODS["evit"].recipe(DEPTH)
