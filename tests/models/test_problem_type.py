"""What logits mean: probabilities by hand, and heads that have none."""

import numpy as np
import pytest

from imagepiece_jax.models.problem_type import PROBLEMS, REGRESSION, activation
from tests.models import tiny
from tests.oracles import softmax
from tests.refused import refused
from tests.rounding import assert_close

LOGITS = np.array([2.0, 0.0, -2.0], np.float32)


@pytest.fixture(scope="module")
def answers():
    vits = {classes: tiny.pretrained(num_classes=classes) for classes in (1, 3)}

    def of(problem_type, classes=3):
        vit = tiny.of_problem(vits[classes], problem_type)
        return vit.probabilities

    return of


def test_several_labels_are_each_by_themselves(answers):
    found = answers("multi_label_classification")(LOGITS)
    np.testing.assert_allclose(found, [0.880797, 0.5, 0.119203], atol=1e-6)


def test_one_label_shares_a_whole(answers):
    found = answers("single_label_classification")(np.stack([LOGITS, 3 * LOGITS]))
    wanted = [softmax(np.float64(LOGITS)), softmax(3 * np.float64(LOGITS))]
    assert_close(found, wanted)


@pytest.mark.parametrize("problem_type", PROBLEMS[:2])
def test_one_class_is_not_always_sure(answers, problem_type):
    found = answers(problem_type, 1)(np.array([0.0], np.float32))
    assert_close(found, [0.5], units=1)


@pytest.mark.parametrize("problem_type", PROBLEMS[:2])
def test_large_logits_do_not_overflow(answers, problem_type):
    found = answers(problem_type)(np.array([2e4, 0, -2e4], np.float32))
    middle = 0.5 if problem_type.startswith("multi") else 0
    np.testing.assert_allclose(found, [1, middle, 0], atol=1e-6)


def test_numbers_are_no_probabilities(answers):
    with refused("problem_type"):
        answers(REGRESSION)(LOGITS)
    assert activation(REGRESSION, 3) is None
    assert activation(PROBLEMS[0], 0) is None
