import numpy as np
import pytest

from imagepiece_jax.models.config import PROBLEM_TYPES, REGRESSION, Head
from tests.helpers.refused_calls import refused

SINGLE, MULTI, _, PROJECTION = PROBLEM_TYPES


@pytest.mark.parametrize(
    "problem_type, logits, expected",
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
def test_probabilities_by_hand(problem_type, logits, expected):
    logits = np.float32(logits)
    probabilities = Head(logits.shape[-1], problem_type).probabilities(logits)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_regression_has_no_probabilities():
    with refused("problem_type"):
        Head(7, REGRESSION).probabilities(np.zeros(7))


@pytest.mark.parametrize(
    "head, classifier, single, projection, classes, activation",
    [
        (Head(3), True, True, False, True, "softmax"),
        (Head(1), True, True, False, True, "sigmoid"),
        (Head(3, MULTI), True, False, False, True, "sigmoid"),
        (Head(3, REGRESSION), True, False, False, None, None),
        (Head(3, PROJECTION), False, False, True, False, None),
        (Head(0), False, False, False, False, None),
        (Head(0, REGRESSION), False, False, False, False, None),
    ],
)
def test_properties_of_heads(head, classifier, single, projection, classes, activation):
    assert (head.is_classifier, head.is_single_label) == (classifier, single)
    assert (head.is_projection, head.has_classes) == (projection, classes)
    assert head.activation == activation
