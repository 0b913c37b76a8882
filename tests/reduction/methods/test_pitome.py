import numpy as np
import pytest

from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.pitome import ByEnergy, PiToMe
from imagepiece_jax.reduction.state import ReducerInputs, TokenState
from tests.helpers.named_models import facts
from tests.helpers.reduction_steps import apply, decide, vectors
from tests.helpers.rounding import assert_close


@pytest.mark.parametrize(
    "protect, progress, merged_groups",
    [(False, 0, [{2, 3}, {4, 5}]), (True, 2 / 3, [{1, 2, 3}])],
)
def test_both_halves_by_hand(protect, progress, merged_groups):
    key = vectors([0, 8, 20, 24, 90, 96, 150, 200])
    x = np.arange(1, 9, dtype=np.float32)[None, :, None]
    size = np.ones((1, 8), np.float32)
    inputs = ReducerInputs(x, size, size, key, key, num_prefix=0)
    counts = StepCounts(n_in=8, n_out=6, progress=progress)
    result = decide(ByEnergy(protect), inputs, counts)
    (slots,) = result.slot_of_token
    groups = [set(np.flatnonzero(slots == slot)) for slot in range(6)]
    assert [g for g in groups if len(g) > 1] == merged_groups
    after = apply(TokenState(x, size, num_prefix=0), result)
    means = [np.mean([1 + t for t in group]) for group in groups]
    assert_close(after.x[0, :, 0], np.asarray(means))


def test_the_second_half_of_blocks_protects():
    protects = [step.reducer.protect for step in PiToMe().steps(facts(5))]
    assert protects == [False] * 3 + [True] * 2
