import pytest

from imagepiece_jax.reduction import block_plan
from imagepiece_jax.reduction.block_plan import KeepShare, MergeCandidates, RemoveCount
from imagepiece_jax.reduction.reducers import Reducer
from tests.helpers import oracles
from tests.helpers.refused_calls import refused

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


@pytest.mark.parametrize("rate", RATES)
def test_keep_counts_are_exact_ceilings_plus_a_fused_token(rate):
    for n in SIZES:
        kept = oracles.keep_count(rate, n)
        for fused in (False, True):
            expected = None if kept == n else kept + fused
            assert KeepShare(float(rate), fused).n_out(n, n, 1) == expected


@pytest.mark.parametrize("merge_ratio, candidate_ratio", MERGES)
def test_merge_counts_are_exact(merge_ratio, candidate_ratio):
    rule = MergeCandidates(float(merge_ratio), float(candidate_ratio))
    for n in SIZES:
        candidates, merges = oracles.merge_counts(n, merge_ratio, candidate_ratio)
        assert rule.n_out(n, n, 1) == (n - merges if merges else None)
        assert rule.count_candidates(n) == candidates


def step(rule, block=0, **fields):
    return block_plan.Step(block, Reducer(), rule, **fields)


def test_steps_follow_counts_as_far_as_their_rules_allow():
    """At most half of 16 tokens leave; later steps remove the rest."""
    steps = [step(RemoveCount(1), block) for block in range(3)]
    assert [s.tokens for s in block_plan.choose_steps((16, 8, 7), steps, 16)] == [8, 7]
    chosen = block_plan.choose_steps((16, 5, 5), steps, 16, exact=False)
    assert [(s.block, s.tokens) for s in chosen] == [(1, 8), (2, 5)]
    assert block_plan.choose_steps((1, 1, 1), [step(RemoveCount(1))], 1) == []
    with refused("after block 1", "at least 8 of 16"):
        block_plan.choose_steps((16, 5, 5), steps, 16)
    with refused("after block 2", "at least 16 of 16"):
        block_plan.choose_steps((16, 16, 15), steps[:2], 16)
