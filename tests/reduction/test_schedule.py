"""Are the token counts those of the papers, whatever binary rounding does?"""

import dataclasses

import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.schedule import Step, build, count, image_tokens
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
