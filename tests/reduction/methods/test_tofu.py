import numpy as np
import pytest

from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.tofu import Discard, Fuse, ToFu
from imagepiece_jax.reduction.state import ReducerInputs, TokenState
from tests.helpers.named_models import facts
from tests.helpers.reduction_steps import apply, decide, vectors


def test_blocks_up_to_the_middle_drop():
    steps = ToFu().steps(facts())
    assert [type(step.reducer) for step in steps] == [Discard] * 7 + [Fuse] * 5


@pytest.mark.parametrize(
    "reducer, third, fifth",
    [(Discard(), (1, 1), (0, 2)), (Fuse(), (7.0711, 1.4142), (0, 12))],
)
def test_tokens_by_hand(reducer, third, fifth):
    """Token 4 leaves to token 3, and token 6 to token 5."""
    key = vectors([0, 10, 14, 50, 47, 90, 88])
    x = [(1, 0), (2, 0), (0, 3), (1, 1), (4, 0), (0, 2), (0, 6)]
    x = np.float32([x])
    size = np.ones((1, 7), np.float32)
    inputs = ReducerInputs(x[:, 1:], size[:, 1:], size[:, 1:], key[:, 1:])
    result = decide(reducer, inputs, StepCounts(n_in=6, n_out=4))
    after = apply(TokenState(x, size), result)
    expected = [(1, 0), (0, 3), (2, 0), third, fifth]
    np.testing.assert_allclose(after.x[0], expected, atol=1e-4)
    is_fused = isinstance(reducer, Fuse)
    assert after.size.tolist() == [[1, 1, 1, 1 + is_fused, 1 + is_fused]]
