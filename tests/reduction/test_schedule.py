"""Are the token counts those of the papers, whatever binary rounding does?"""

import dataclasses

import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.schedule import (
    Step,
    build,
    count,
    image_tokens,
    rounded,
)
from tests import oracles

SIZES = (*range(1, 41), 75, 90, 100, 137, 165, 180, 196, 256, 576)
RATES = ("0", "0.01", "0.07", "0.3", "0.55", "0.6", "0.7", "0.8", "0.9", "0.999", "1")
MERGES = (
    ("0.08", "0.3"),
    ("0.15", "0.3"),
    ("0.5", "0.7"),  # float64: floor(0.7 * 90) is 62
    ("0", "0.3"),
    ("0.08", "0"),
    ("1", "1"),
)


def step(rule, amount, block=0, site="mid"):
    return Step(block=block, reducer=None, rule=rule, amount=amount, site=site)


def n_out(rule, amount, n):
    counts = count(step(rule, amount), n, n)
    return n if counts is None else counts.n_out


@pytest.mark.parametrize("rate", RATES)
def test_keep_is_the_exact_ceiling(rate):
    for n in SIZES:
        kept = oracles.keep_count(rate, n)
        counts = count(step("keep", float(rate)), n, n)
        if kept == n:
            assert counts is None
        else:
            assert (counts.n_in, counts.n_out) == (n, kept)


@pytest.mark.parametrize("rate", RATES)
def test_keep_fuse_adds_one_token_to_what_is_kept(rate):
    for n in SIZES:
        kept = oracles.keep_count(rate, n)
        counts = count(step("keep_fuse", float(rate)), n, n)
        if kept == n:
            assert counts is None
        else:
            assert (counts.n_in, counts.n_out) == (n, kept + 1)


@pytest.mark.parametrize("base", ["all", "candidates"])
@pytest.mark.parametrize("merge_ratio, candidate_ratio", MERGES)
def test_merge_counts_are_exact(merge_ratio, candidate_ratio, base):
    amount = (float(merge_ratio), float(candidate_ratio), base)
    for n in SIZES:
        candidates, merges = oracles.merge_counts(n, merge_ratio, candidate_ratio, base)
        counts = count(step("merge", amount), n, n)
        if merges == 0:
            assert counts is None
        else:
            assert (counts.n_in, counts.n_out) == (n, n - merges)
            assert counts.candidates == candidates


@pytest.mark.parametrize(
    "rule, amount, n, expected",
    [
        ("keep", 0.07, 100, 7),  # float64: ceil(0.07 * 100) is 8
        ("keep", 0.55, 100, 55),  # float64: ceil(0.55 * 100) is 56
        ("merge", (0.08, 0.3, "all"), 196, 180),  # first step of ImagePiece
        ("merge", (0.08, 0.3, "all"), 180, 165),
        ("merge", (0.15, 0.3, "all"), 196, 196 - 29),  # 30 wanted, 58 // 2 possible
        ("merge", (0.08, 0.3, "candidates"), 196, 196 - 5),
        ("keep", 0.7, 196, 138),  # first step of EViT
        ("keep_fuse", 0.7, 196, 139),
        ("keep_fuse", 0.7, 139, 99),
        ("keep", 0.0, 196, 1),  # one token always survives
        ("keep", 0.5, 1, 1),
        ("merge", (0.08, 0.3, "all"), 6, 6),  # one candidate has no partner
        ("merge", (0.08, 0.3, "all"), 7, 6),
    ],
)
def test_published_and_hand_computed_counts(rule, amount, n, expected):
    assert n_out(rule, amount, n) == expected


def test_build_puts_mid_steps_between_attention_and_mlp():
    steps = [step("keep", 0.7, block=6), step("keep", 0.7, block=3)]
    plan = build(depth=8, n0=196, steps=steps)
    tokens = [(layer.attn_tokens, layer.mlp_tokens) for layer in plan]
    assert tokens == [(197, 197)] * 3 + [(197, 139)] + [(139, 139)] * 2 + [
        (139, 98),
        (98, 98),
    ]
    assert [layer.step for layer in plan if layer.step] == steps[::-1]
    assert image_tokens(plan, 196) == 97


def test_build_puts_pre_steps_before_the_block():
    plan = build(depth=3, n0=196, steps=[step("keep", 0.7, block=1, site="pre")])
    tokens = [(layer.attn_tokens, layer.mlp_tokens) for layer in plan]
    assert tokens == [(197, 197), (139, 139), (139, 139)]
    assert plan[1].counts.n_in == 196


def test_prefix_is_added_and_never_counted():
    """A distillation token changes no count: N is n + 1 whatever the prefix is."""
    steps = [step("merge", (0.08, 0.3, "all"), block=0), step("keep", 0.8, block=1)]
    one, two = (build(2, 196, steps, num_prefix=prefix) for prefix in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert a.counts == b.counts
        assert (a.attn_tokens, a.mlp_tokens) == (b.attn_tokens - 1, b.mlp_tokens - 1)


def test_a_step_that_changes_nothing_stays_without_counts():
    steps = [step("keep", 1.0, block=0), step("merge", (0.0, 0.3, "all"), block=1)]
    plan = build(depth=2, n0=16, steps=steps)
    assert [layer.step for layer in plan] == steps
    assert [layer.counts for layer in plan] == [None, None]
    assert image_tokens(plan, 16) == 16


@pytest.mark.parametrize("block", [-1, 12, 100])
def test_step_outside_the_model_is_named(block):
    with pytest.raises(InputError, match=rf"block {block}\b.*0 to 11"):
        build(depth=12, n0=196, steps=[step("keep", 0.7, block=block)])


def test_two_steps_on_one_block_are_named():
    steps = [step("keep", 0.7, block=3), step("merge", (0.08, 0.3, "all"), block=3)]
    with pytest.raises(InputError, match="two steps at block 3"):
        build(depth=12, n0=196, steps=steps)


def test_unknown_rule_lists_the_known_ones():
    with pytest.raises(InputError, match="'halve'.*'keep'.*'merge'"):
        count(step("halve", 0.5), 196, 196)


def test_plans_are_frozen():
    """One plan is read by model, counter and pictures: none of them may change it."""
    (layer,) = build(depth=1, n0=4, steps=[step("keep", 0.5)])
    for part, field in ((layer, "attn_tokens"), (layer.counts, "n_out")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field, 0)


# Counts that fit the hardware


def totals(steps, **options):
    """Tokens after each block of a 12-block model on 196 patches, prefix included."""
    return [layer.mlp_tokens for layer in build(12, 196, steps, **options)]


def rounded_steps(rules, round_to):
    """One step a rule, in blocks 0, 1, ..."""
    return rounded(
        [step(rule, amount, block) for block, (rule, amount) in enumerate(rules)],
        round_to,
    )


MERGE, PRUNE = ("merge", (0.08, 0.3, "all")), ("keep", 0.8)
IMAGEPIECE = [MERGE, MERGE, PRUNE] * 3  # 181 166 133, 122 112 90, 82 75 61


@pytest.mark.parametrize(
    "round_to, expected",
    [
        (0, [181, 166, 133, 122, 112, 90, 82, 75, 61]),
        (1, [181, 166, 133, 122, 112, 90, 82, 75, 61]),
        (8, [184, 168, 136, 120, 112, 88, 80, 72, 64]),  # 133: 136 is 3 away, 128 5
        (16, [176, 160, 128, 128, 112, 96, 96, 96, 64]),  # 90: 96; 82: 80 is too few
        (64, [192, 192, 128, 128, 128, 64, 64, 64, 64]),
    ],
)
def test_rounded_counts_stay_near_the_exact_ones(round_to, expected):
    """Each is the multiple nearest to its exact count, so errors do not add up.

    By hand: 96 tokens merge at most half of floor(.3 * 95) candidates, 14, so that 80
    is out of reach from there; the step waits, and the next has 64 in reach.
    """
    steps = rounded_steps(IMAGEPIECE, round_to)
    assert totals(steps) == [*expected, *[expected[-1]] * 3]


def test_a_tie_goes_to_fewer_tokens_and_one_multiple_always_stays():
    # Of 196 tokens 100, 95, 108 and 1 stay: with the class token 101, 96, 109 and 2.
    for rate, total in ((0.51, 96), (0.48, 96), (0.55, 112), (0.0, 16)):
        assert totals(rounded_steps([("keep", rate)], 16))[0] == total
    assert n_out("keep", 0.525, 196) == 103  # 104 with the class token: 96 or 112
    assert totals(rounded_steps([("keep", 0.525)], 16))[0] == 96


def test_the_prefix_counts_whatever_it_is():
    for prefix in (0, 1, 2):
        counts = totals(rounded_steps([PRUNE, PRUNE], 8), num_prefix=prefix)
        assert all(total % 8 == 0 for total in counts)
    # With two prefix tokens 2 is no count: an image token has to stay.
    assert totals(rounded_steps([("keep", 0.0)], 2), num_prefix=2)[0] == 4


def test_a_matching_takes_at_most_one_side():
    """From 196: at most 98 leave, and 99 tokens are not 64."""
    halves = [("remove", 98), ("remove", 98)]
    assert totals(rounded_steps(halves, 64))[:2] == [128, 128]
    assert totals(rounded_steps(halves, 32))[:2] == [128, 96]
    assert totals(rounded_steps([("keep_half", 0.4)], 64))[0] == 128
    assert totals(rounded_steps([("keep", 0.4)], 64))[0] == 64


def test_candidates_are_those_of_the_tokens_that_are_there():
    """184 tokens hold 183 patches, floor(.3 * 183) = 54 candidates."""
    first, second, *_ = build(12, 196, rounded_steps(IMAGEPIECE, 8))
    assert (first.counts.n_in, first.counts.n_out) == (196, 183)
    assert (second.counts.n_in, second.counts.candidates) == (183, 54)


def test_a_step_that_could_only_stay_disappears():
    plan = build(12, 196, rounded_steps(IMAGEPIECE, 64))
    changed = [block for block, layer in enumerate(plan) if layer.counts]
    assert changed == [0, 2, 5]
    assert [plan[block].counts.stage for block in changed] == [1, 2, 3]
    assert all(plan[block].step for block in range(9))


def test_a_step_that_changes_nothing_is_not_rounded():
    assert totals(rounded_steps([("keep", 1.0)], 8)) == [197] * 12


def test_masked_training_keeps_what_evaluation_would_remove():
    steps = rounded_steps([PRUNE], 8)
    held = [dataclasses.replace(s, when_masked=0) for s in steps]
    assert totals(held, masked=True) == [197] * 12


@pytest.mark.parametrize("round_to", [197, 256])
def test_multiples_that_no_step_can_reach_are_refused(round_to):
    with pytest.raises(InputError, match=f"round_to is {round_to}; .*below the 197"):
        build(12, 196, rounded_steps([PRUNE], round_to))


@pytest.mark.parametrize("round_to", [-8, 2.5, "8", True, None])
def test_what_is_no_multiple_is_refused(round_to):
    with pytest.raises(InputError, match="round_to is .*whole numbers from 0"):
        rounded([], round_to)
