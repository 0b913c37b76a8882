import pytest

from imagepiece_jax.reduction import block_plan
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece
from imagepiece_jax.reduction.methods.imagepiece_tome import ImagePieceToMe
from imagepiece_jax.reduction.reducers import Bipartite
from tests.helpers.named_models import facts


@pytest.mark.parametrize(
    "depth, merge, prune",
    [
        (12, (0, 1, 3, 4, 6, 7), (2, 5, 8)),
        (4, (0, 1), (2,)),
        (6, (0, 1), (2,)),
        (8, (0, 1, 3, 4), (2, 5)),
        (16, (0, 1, 3, 4, 6, 7, 9, 10), (2, 5, 8, 11)),
    ],
)
def test_a_cycle_merges_twice_and_prunes_once(depth, merge, prune):
    steps = ImagePiece().steps(facts(depth))
    rules = {step.block: type(step.rule) for step in steps}
    merge_rules = dict.fromkeys(merge, block_plan.MergeCandidates)
    assert rules == merge_rules | dict.fromkeys(prune, block_plan.KeepShare)


@pytest.mark.parametrize(
    "own, ratio, rates",
    [
        ((0.8, 0.08), 0, (1.0, 0.0)),
        ((0.8, 0.08), 0.1, (0.9, 0.04)),
        ((0.8, 0.08), 1, (0.0, 0.4)),
        ((0.6, 0.1), 0.4, (0.6, 0.1)),
    ],
)
def test_scaled_rates_keep_their_proportion(own, ratio, rates):
    scaled = ImagePiece(*own).scale_schedule(ratio, facts())
    assert (scaled.keep_rate, scaled.merge_ratio) == rates


def test_merge_steps_are_imagepieces_and_prune_steps_match_pairs():
    fields = {"metric": "value", "merge_ratio": 0.15, "parity": 1, "keep_rate": 0.5}
    fields |= {"merge_blocks": (1,), "prune_blocks": (0, 2)}
    first_prune, merge, last_prune = ImagePieceToMe(**fields).steps(facts())
    assert merge == ImagePiece(**fields).steps(facts())[1]
    for block, step in ((0, first_prune), (2, last_prune)):
        rule = block_plan.KeepAtLeastHalf(0.5)
        assert step == block_plan.Step(block, Bipartite("value"), rule)
