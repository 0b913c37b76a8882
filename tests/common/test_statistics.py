import fractions
import math

import numpy as np
import pytest
from scipy import stats

from imagepiece_jax.common import statistics
from imagepiece_jax.common.statistics import Estimate
from tests.helpers.rounding import assert_close


@pytest.mark.parametrize(
    "right, wrong, low, high",
    # Newcombe (1998), table I, method 3: score intervals of 81/263, 15/148 and 0/20
    [(81, 182, 25.53, 36.62), (15, 133, 6.24, 16.05), (0, 20, 0.0, 16.11)],
)
def test_accuracy_has_wilsons_interval(right, wrong, low, high):
    estimate = statistics.estimate_accuracy(np.array([True] * right + [False] * wrong))
    assert estimate.value == pytest.approx(100 * right / (right + wrong))
    np.testing.assert_allclose(estimate[1:], (low, high), atol=0.006)
    by_scipy = stats.binomtest(right, right + wrong).proportion_ci(method="wilson")
    np.testing.assert_allclose(estimate[1:], 100 * np.array(by_scipy), atol=1e-9)


def test_an_accuracys_interval_stays_between_0_and_100():
    """Rounding alone gave a low end of -1e-15, printed as -0.0."""
    for count in (7, 9, 14, 17, 18):
        assert statistics.estimate_accuracy(np.zeros(count, bool)).low == 0
        assert statistics.estimate_accuracy(np.ones(count, bool)).high == 100


def pair(both, gained, lost, neither):
    """Two models' right answers with these counts in the 2 x 2 table."""
    counts = (both, gained, lost, neither)
    right = np.repeat([True, True, False, False], counts)
    return right, np.repeat([True, False, True, False], counts)


def test_paired_difference_by_hand():
    """Agresti and Min: 12.5 gained, 4.5 lost, 102 images; the value has no halves."""
    estimate = statistics.paired_difference(*pair(70, 12, 4, 14))
    deviation = np.sqrt((12.5 + 4.5) - 8**2 / 102) / 102
    assert estimate.value == pytest.approx(8.0)
    expected = 100 * (8 / 102 + 1.959964 * np.array([-1, 1]) * deviation)
    assert_close(np.array(estimate[1:]), expected, units=1)


def test_equal_answers_have_an_interval_within_100_points():
    """One gained image has the value 100; with the halves, 1/3 +- .84."""
    estimate = statistics.paired_difference(*pair(8, 0, 0, 2))
    assert estimate.low < -5 and estimate.value == 0 and estimate.high > 5
    estimate = statistics.paired_difference(*pair(0, 1, 0, 0))
    assert estimate.value == estimate.high == 100
    assert -52 < estimate.low < -50
    assert statistics.paired_difference(*pair(0, 0, 1, 0)).low == -100


@pytest.mark.parametrize("gained, lost", [(0, 0), (5, 5), (400, 312)])
def test_mcnemar_sums_a_row_of_pascals_triangle(gained, lost):
    tosses = gained + lost
    fewer = min(gained, lost)
    tail = sum(math.comb(tosses, k) for k in range(fewer + 1))
    expected = min(fractions.Fraction(2 * tail, 2**tosses), 1)
    p = statistics.mcnemar_p(*pair(50, gained, lost, 7))
    assert p == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize(
    "p, corrected",
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.04, 0.03], [0.06, 0.06]),  # at least a smaller p's
        ([0.6, 0.7], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm_by_hand(p, corrected):
    """.005 .01 .03 .04 times four, three, two and one, then made monotone."""
    assert_close(statistics.holm_correction(p), corrected, units=1)


def test_estimates_are_formatted():
    estimate = Estimate(84.94, -82.51, 87.0)
    assert statistics.format_estimate(estimate) == "84.9 [-82.5, 87.0]"
    written = statistics.format_difference(estimate)
    assert written == "+84.9 [-82.5, +87.0], within noise"
    assert statistics.format_difference(Estimate(-2, -3, -1)) == "-2.0 [-3.0, -1.0]"
    assert statistics.format_estimate(None) == statistics.format_difference(None) == ""


def test_a_mean_difference_has_students_interval_and_a_share_ends_at_100():
    shares = [100.0] * 9 + [90.0]
    by_scipy = stats.ttest_1samp(shares, 0).confidence_interval()
    expected = (99, by_scipy.low, by_scipy.high)
    difference = statistics.mean_difference(np.array(shares) + 7, np.full(10, 7))
    np.testing.assert_allclose(difference, expected)
    estimate = statistics.mean_share(np.array(shares))
    np.testing.assert_allclose(estimate, (99, by_scipy.low, 100))
