"""How sure is a figure? 95 % intervals, paired differences, and what is noise.

Accuracies and their differences are in percent and points. All images count alike; two
models are always compared on the same images, in the same order.
"""

import math
from typing import NamedTuple

import numpy as np

Z = 1.959964  # standard errors of a 95 % interval
# Student's t for 95 %, by degrees of freedom from 1 on.
T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
NOISE = "within noise"


class Estimate(NamedTuple):
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def proportion(right):
    """Percent of True in `right` [n], with Wilson's interval (1927).

    Unlike value +- 1.96 standard errors it stays inside 0..100 and is not empty there.
    """
    n, share = len(right), float(np.mean(right))
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return Estimate(100 * share, 100 * (centre - half), 100 * (centre + half))


def mean(values):
    """Mean of one value an image [n], by its standard error; NaN values do not count.

    All NaN: NaN throughout.
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan)
    half = Z * values.std(ddof=len(values) > 1) / math.sqrt(len(values))
    return Estimate(values.mean(), values.mean() - half, values.mean() + half)


def paired(right, base):
    """Points of accuracy that `right` has more than `base`, image by image.

    Both [n] bool. The interval is that of Agresti and Min (2005): half an image more
    in each cell of the 2 x 2 table, so that it is not empty where few images differ.
    """
    gained, lost = discordant(right, base)
    n = len(right) + 2
    centre, differ = (gained - lost) / n, gained + lost + 1
    half = Z * math.sqrt(differ - (gained - lost) ** 2 / n) / n
    value = 100 * (gained - lost) / len(right)
    low, high = 100 * (centre - half), 100 * (centre + half)
    return Estimate(value, max(low, -100.0), min(high, 100.0))


def discordant(right, base):
    """Images that only `right`, and that only `base` has right."""
    right, base = np.asarray(right, bool), np.asarray(base, bool)
    if right.shape != base.shape:
        raise ValueError(f"answers of {right.shape} and {base.shape} are not paired")
    return int(np.sum(right & ~base)), int(np.sum(base & ~right))


def mcnemar(right, base):
    """Exact two-sided p of McNemar's test (1947) that neither is better."""
    gained, lost = discordant(right, base)
    tosses, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(tosses, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**tosses)


def over_seeds(values):
    """Mean of values [seeds, n], an image each, of several trainings.

    Two sources of chance add up: which images there are (normal), and which seeds
    (Student's t over the seeds' means). One seed: the images alone.
    """
    values = np.asarray(values, np.float64)
    seeds, n = values.shape
    half = Z * values.mean(axis=0).std(ddof=n > 1) / math.sqrt(n)
    if seeds > 1:
        t = T[min(seeds - 1, len(T)) - 1]
        half = math.hypot(half, t * values.mean(axis=1).std(ddof=1) / math.sqrt(seeds))
    return Estimate(values.mean(), values.mean() - half, values.mean() + half)


def accuracy(rights):
    """Percent right over seeds [seeds, n], inside 0..100; of one, Wilson's interval."""
    if len(rights) == 1:
        return proportion(rights[0])
    value, low, high = over_seeds(100.0 * np.asarray(rights))
    return Estimate(value, max(low, 0.0), min(high, 100.0))


def difference(rights, bases):
    """Points of difference, seed by seed and image by image. [seeds, n] twice."""
    if len(rights) == 1:
        return paired(rights[0], bases[0])
    rights, bases = np.asarray(rights, float), np.asarray(bases, float)
    return over_seeds(100 * (rights - bases))


def bootstrap(statistic, n, repeats=1000, seed=0):
    """Estimate of `statistic(index)`, a number, by drawing n images anew.

    `index` [n] names images, some more than once; percentile interval (Efron 1979).
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(0, n, n)) for _ in range(repeats)]
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return Estimate(float(statistic(np.arange(n))), float(low), float(high))


def is_noise(difference):
    """Whether a difference of zero lies in the interval."""
    return difference.low <= 0 <= difference.high


def text(estimate, digits=1):
    """ "84.9 [82.5, 87.0]"; blank for one that is not there."""
    if estimate is None or math.isnan(estimate.value):
        return ""
    value, low, high = (f"{number:.{digits}f}" for number in estimate)
    return f"{value} [{low}, {high}]"


def difference_text(estimate, digits=1):
    """As `text`, with signs, and in words where the difference is inside its noise."""
    if estimate is None or math.isnan(estimate.value):
        return ""
    value, low, high = (f"{number:+.{digits}f}" for number in estimate)
    verdict = f", {NOISE}" if is_noise(estimate) else ""
    return f"{value} [{low}, {high}]{verdict}"
