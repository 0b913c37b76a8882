import pytest

from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.reduction.block_plan import KeepShare, MergeCandidates, plan_blocks
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece
from tests.helpers import tiny_vit
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
    assert rules == {
        **dict.fromkeys(merge, MergeCandidates),
        **dict.fromkeys(prune, KeepShare),
    }
    assert all(step.site == "mid" for step in steps)
    plan_blocks(depth, 196, steps)


def test_scaled_schedules_pass_the_own_rates_and_cost_ever_less():
    methods = [ImagePiece().scale_schedule(i / 100, facts()) for i in range(101)]
    rates = [(method.keep_rate, method.merge_ratio) for method in methods]
    assert rates[0] == (1.0, 0.0)
    assert rates[20] == (0.8, 0.08)
    assert rates[10] == (0.9, 0.04)
    assert rates[-1] == (0.0, 0.4)
    scaled = ImagePiece(keep_rate=0.6, merge_ratio=0.1).scale_schedule(0.4, facts())
    assert (scaled.keep_rate, scaled.merge_ratio) == (0.6, 0.1)
    plans = [plan_blocks(12, 196, method.steps(facts())) for method in methods]
    costs = [model_macs(tiny_vit.imagenet_vit(plan, 192, 3)) for plan in plans]
    assert costs == sorted(costs, reverse=True)
