"""95 % intervals over trainings and of means over images; no command prints them.

The package's `statistics` has the intervals of one model's accuracy and of two models.

Sources: Student (1908), a mean over few trainings; Efron (1979), the percentile
bootstrap of any statistic.
"""

import math

import numpy as np
from scipy import stats

from imagepiece_jax.common import statistics
from imagepiece_jax.common.statistics import Estimate


def estimate_accuracy(rights):
    """Percent of True, bool [seeds, images]; one seed has Wilson's interval."""
    if len(rights) == 1:
        return statistics.estimate_accuracy(rights[0])
    percents = 100.0 * np.asarray(rights)
    value, low, high = mean_over_seeds(percents)
    return Estimate(value, max(low, 0.0), min(high, 100.0))


def estimate_difference(rights, bases):
    """Points by which `rights` exceed `bases`, paired by seed and image.

    bool [seeds, images] twice; one seed has the interval of Agresti and Min.
    """
    if len(rights) == len(bases) == 1:
        return statistics.paired_difference(rights[0], bases[0])
    changes = []
    for right, base in zip(rights, bases, strict=True):
        changes.append(100 * (right.astype(float) - base))
    return mean_over_seeds(changes)


def estimate_mean(values):
    """Mean of one value per image [images], NaN left out, by its standard error."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    count = len(values)
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan)
    spread = values.std(ddof=1 if count > 1 else 0)
    half = statistics.NORMAL_QUANTILE * spread / math.sqrt(count)
    value = values.mean()
    return Estimate(value, value - half, value + half)


def mean_over_seeds(values):
    """Mean of one value per image of several trainings. [seeds, images].

    Two sources of chance add up: the images (normal), and the seeds (Student's t over
    the seeds' means).
    """
    by_image = estimate_mean(np.mean(values, axis=0))
    by_seed = estimate_seed_mean(np.mean(values, axis=1))
    of_images = by_image.high - by_image.value
    of_seeds = by_seed.high - by_seed.value
    half = math.hypot(of_images, of_seeds)
    return Estimate(by_seed.value, by_seed.value - half, by_seed.value + half)


def estimate_seed_mean(values):
    """Mean of one figure per training [trainings], two or more, by Student's t."""
    errors = stats.t.ppf(0.975, len(values) - 1)
    half = float(errors * stats.sem(values))
    value = float(np.mean(values))
    return Estimate(value, value - half, value + half)


def bootstrap_statistic(statistic, n, repeats=1000):
    """Estimate of `statistic(index)`, a number, by resampling n images.

    `index` [n] repeats some images; the interval has percentiles.
    """
    rng = np.random.default_rng(0)
    resampled = []
    for _ in range(repeats):
        index = rng.integers(0, n, n)
        resampled.append(statistic(index))
    low, high = np.nanpercentile(resampled, (2.5, 97.5))
    value = statistic(np.arange(n))
    return Estimate(float(value), float(low), float(high))
