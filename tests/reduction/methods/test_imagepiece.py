"""ImagePiece's schedules, and the blocks and rates that its steps get."""

import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.flops import plan_macs
from imagepiece_jax.reduction.layer_plan import build
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece
from imagepiece_jax.reduction.token_counts import Keep, Merge


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
def test_it_merges_twice_and_prunes_once_a_cycle(schedule, depth, merge, prune):
    found = ImagePiece(schedule=schedule).steps(depth)
    rules = {step.block: type(step.rule) for step in found}
    assert rules == {**dict.fromkeys(merge, Merge), **dict.fromkeys(prune, Keep)}
    assert all(step.site == "mid" for step in found)
    build(depth, 196, found)


def test_named_blocks_override_the_schedule():
    fields = {"merge_blocks": (1,), "prune_blocks": (0, 2), "merge_ratio": 0.15}
    found = ImagePiece(keep_rate=0.6, **fields).steps(3)
    assert [(step.block, step.rule) for step in found] == [
        (0, Keep(0.6)),
        (1, Merge(0.15, 0.3, "all")),
        (2, Keep(0.6)),
    ]


def test_a_schedule_needs_four_blocks():
    with pytest.raises(InputError, match="depth of 4.*found 3.*merge_blocks"):
        ImagePiece().steps(3)


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("schedule", "C", "'A', 'B'"),
        ("merge_base", "some", "'all', 'candidates'"),
        ("order", "random", "'descending', 'ascending'"),
        ("parity", 2, "0, 1"),
        ("metric", "keys", "'key', 'query', 'value', 'token'"),
        ("size_weighting", 1, "True, False"),
    ],
)
def test_an_unknown_choice_lists_the_known_ones(field, value, allowed):
    with pytest.raises(InputError, match=rf"{field} is {value!r}; .*are {allowed}$"):
        ImagePiece(**{field: value})


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
    plans = [build(12, 196, ImagePiece(**f).steps(12)) for f in ({}, fields)]
    assert [layer.mlp_tokens for layer in plans[1]] == tokens
    nine, fewer = (sum(plan_macs(plan, 384, 6)) for plan in plans)
    assert fewer == pytest.approx(nine, rel=0.01)
