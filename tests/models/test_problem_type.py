"""What logits mean: probabilities by hand, and heads that have none."""

import numpy as np
import pytest

from imagepiece_jax.models.problem_type import PROBLEMS, REGRESSION, activation
from tests.helpers import tiny_vit
from tests.helpers.refused_calls import refused

SINGLE, MULTI = PROBLEMS[:2]


@pytest.mark.parametrize(
    "problem_type, logits, wanted",
    [
        (MULTI, [2, 0, -2], [0.880797, 0.5, 0.119203]),
        (SINGLE, [2, 0, -2], [0.866814, 0.117310, 0.015876]),
        (SINGLE, [[0, 0, np.log(2)]], [[0.25, 0.25, 0.5]]),
        # One class is not always sure, and large logits do not overflow.
        (MULTI, [0], [0.5]),
        (SINGLE, [0], [0.5]),
        (MULTI, [2e4, 0, -2e4], [1, 0.5, 0]),
        (SINGLE, [2e4, 0, -2e4], [1, 0, 0]),
    ],
)
def test_probabilities_by_hand(problem_type, logits, wanted):
    logits = np.float32(logits)
    vit = tiny_vit.of_problem(
        tiny_vit.pretrained(num_classes=logits.shape[-1]), problem_type
    )
    np.testing.assert_allclose(vit.probabilities(logits), wanted, atol=1e-6)


def test_numbers_are_no_probabilities():
    with refused("problem_type"):
        tiny_vit.of_problem(tiny_vit.pretrained(), REGRESSION).probabilities(
            np.zeros(7)
        )
    assert activation(REGRESSION, 3) is None
    assert activation(PROBLEMS[0], 0) is None
