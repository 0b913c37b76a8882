import numpy as np
import pytest
from scipy import stats

from experiments import intervals
from imagepiece_jax.common import statistics
from tests.common.test_statistics import pair
from tests.helpers.rounding import assert_close


@pytest.mark.parametrize(
    "points, low, high",  # of five trainings: 2.776 standard errors
    [((0.0, 8.5, 7.5, -0.5, 2.5), -1.6, 8.8), ((7.5, 6.5, 6.0, 8.0, 6.5), 5.9, 7.9)],
)
def test_few_trainings_have_students_interval(points, low, high):
    estimate = intervals.estimate_seed_mean(points)
    expected = stats.ttest_1samp(points, 0).confidence_interval()
    assert estimate == pytest.approx((np.mean(points), *expected))
    assert (round(estimate.low, 1), round(estimate.high, 1)) == (low, high)


def test_means_leave_missing_values_out():
    estimate = intervals.estimate_mean([1.0, np.nan, 2.0, 6.0])
    half = 1.959964 * np.sqrt(7 / 3)  # variance 7 of three values
    assert_close(np.array(estimate), (3, 3 - half, 3 + half), units=1)
    assert np.isnan(intervals.estimate_mean([np.nan, np.nan])).all()


def test_variances_of_seeds_and_images_add_up():
    """Two seeds of four images: means 50 and 100; images' means 50, 100, 100, 50."""
    estimate = intervals.mean_over_seeds(100 * np.array([[0, 1, 1, 0], [1, 1, 1, 1]]))
    images = 1.959964 * np.std([50, 100, 100, 50], ddof=1) / 2
    seeds = 12.706205 * np.std([50, 100], ddof=1) / np.sqrt(2)
    assert estimate.value == 75
    assert estimate.high - estimate.value == pytest.approx(np.hypot(images, seeds))
    estimate = intervals.estimate_accuracy(np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool))
    assert estimate == (87.5, 0, 100)
    # One seed has the interval of its images.
    right, base = pair(30, 6, 2, 2)
    assert intervals.estimate_accuracy([right]) == statistics.estimate_accuracy(right)
    expected = statistics.paired_difference(right, base)
    assert intervals.estimate_difference([right], [base]) == expected


def test_differences_are_paired_by_seed_and_image():
    """Differences of images, over seeds: 50, 0, 0, 50; of seeds: 25 and 25."""
    rights = np.array([[1, 1, 1, 0], [1, 0, 1, 1]], bool)
    bases = np.array([[0, 1, 1, 0], [1, 0, 1, 0]], bool)
    estimate = intervals.estimate_difference(rights, bases)
    half = 1.959964 * np.std([50, 0, 0, 50], ddof=1) / 2
    assert_close(np.array(estimate), (25, 25 - half, 25 + half), units=1)


def test_intervals_are_near_their_bootstrap():
    values = np.random.default_rng(3).normal(size=400)
    bootstrap = intervals.bootstrap_statistic(lambda index: values[index].mean(), 400)
    np.testing.assert_allclose(bootstrap, intervals.estimate_mean(values), atol=0.02)
