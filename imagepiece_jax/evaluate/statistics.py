"""95 % confidence intervals of accuracies, paired differences and means over images.

The only place in the package where an interval is computed, so that the same figure has
the same interval wherever it is printed. Accuracies are in percent, their differences
in points. Two models are always compared on the same images, in the same order.

Sources: Wilson (1927), a proportion; Agresti and Min (2005), a difference of paired
proportions; McNemar (1947), its test; Holm (1979), many tests at once; Student (1908),
a mean over few trainings; Efron (1979), the percentile bootstrap of any statistic.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

Z = 1.959964  # standard errors of a 95 % interval
NOISE = "within noise"


class Estimate(NamedTuple):
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def accuracy(right: ArrayLike) -> Estimate:
    """Percent of True. bool [images], or [seeds, images] of several trainings.

    The interval for one model is Wilson's: unlike value +- 1.96 standard errors it
    stays inside 0..100 and is not empty at its ends. For several see `mean_over_seeds`.
    """
    right = np.atleast_2d(right)
    if len(right) > 1:
        value, low, high = mean_over_seeds(100.0 * right)
        return Estimate(value, max(low, 0.0), min(high, 100.0))
    n, share = right.size, float(right.mean())
    center = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return Estimate(100 * share, 100 * (center - half), 100 * (center + half))


def paired_difference(right: ArrayLike, base: ArrayLike) -> Estimate:
    """Points of accuracy that `right` has more than `base`, image by image.

    bool [images] twice, or [seeds, images] twice, paired by seed as well. The
    interval for one pair is that of Agresti and Min: half an image more in each cell of
    the 2 x 2 table, so that it is not empty where few images differ.
    """
    right, base = np.atleast_2d(right), np.atleast_2d(base)
    gained, lost = discordant(right, base)
    if len(right) > 1:
        return mean_over_seeds(100 * (right.astype(float) - base))
    n = right.size + 2
    center, differ = (gained - lost) / n, gained + lost + 1
    half = Z * math.sqrt(differ - (gained - lost) ** 2 / n) / n
    low, high = 100 * (center - half), 100 * (center + half)
    value = 100 * (gained - lost) / right.size
    return Estimate(value, max(low, -100.0), min(high, 100.0))


def discordant(right: ArrayLike, base: ArrayLike) -> tuple[int, int]:
    """Numbers of images that only `right`, and that only `base` answers right."""
    right, base = np.asarray(right, bool), np.asarray(base, bool)
    if right.shape != base.shape:
        raise ValueError(f"answers of {right.shape} and {base.shape} are not paired")
    return int(np.sum(right & ~base)), int(np.sum(base & ~right))


def mcnemar(right: ArrayLike, base: ArrayLike) -> float:
    """Exact two-sided p of McNemar's test that neither is better. bool [images]."""
    gained, lost = discordant(right, base)
    trials, fewer = gained + lost, min(gained, lost)
    return min(1.0, 2 * float(special.bdtr(fewer, trials, 0.5)))


def holm(p: ArrayLike) -> list[float]:
    """p of a family of tests, corrected by Holm's step-down rule, in their order.

    The chance that any corrected p below .05 is false is at most .05, however the tests
    depend on each other.
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)  # the smallest by all, the largest by one
    raised = np.maximum.accumulate(factors * p[order])
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(raised, 1.0)
    return corrected.tolist()


def mean(values: ArrayLike) -> Estimate:
    """Mean of one value per image [images], NaN left out, by its standard error."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan)
    half = Z * values.std(ddof=len(values) > 1) / math.sqrt(len(values))
    return Estimate(values.mean(), values.mean() - half, values.mean() + half)


def mean_over_seeds(values: ArrayLike) -> Estimate:
    """Mean of one value per image of several trainings. [seeds, images].

    Two sources of chance add up: which images there are (normal), and which seeds
    (Student's t over the seeds' means). One seed: only the images.
    """
    values = np.asarray(values, np.float64)
    by_image = mean(values.mean(axis=0))
    if len(values) == 1:
        return by_image
    by_seed = student(values.mean(axis=1))
    half = math.hypot(by_image.high - by_image.value, by_seed.high - by_seed.value)
    return Estimate(values.mean(), values.mean() - half, values.mean() + half)


def student(values: ArrayLike) -> Estimate:
    """Mean of one figure per training [trainings], two or more, by Student's t."""
    values = np.asarray(values, np.float64)
    t = special.stdtrit(len(values) - 1, 0.975)
    half = float(t * values.std(ddof=1) / math.sqrt(len(values)))
    value = float(values.mean())
    return Estimate(value, value - half, value + half)


def bootstrap(
    statistic: Callable[[np.ndarray], float], n: int, repeats: int = 1000
) -> Estimate:
    """Estimate of `statistic(index)`, a number, by resampling n images.

    `index` [n] names images, some more than once; percentile interval.
    """
    rng = np.random.default_rng(0)
    drawn = [statistic(rng.integers(0, n, n)) for _ in range(repeats)]
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return Estimate(float(statistic(np.arange(n))), float(low), float(high))


def format_estimate(
    estimate: Estimate | None, digits: int = 1, signs: bool = False
) -> str:
    """ "84.9 [82.5, 87.0]", or all with `signs`; blank for None and NaN."""
    if estimate is None or math.isnan(estimate.value):
        return ""
    form = f"+.{digits}f" if signs else f".{digits}f"
    value, low, high = (format(number, form) for number in estimate)
    return f"{value} [{low}, {high}]"


def format_difference(estimate: Estimate | None, digits: int = 1) -> str:
    """ "+1.8 [-0.0, +3.6], within noise": with signs, and a word where it is noise."""
    text = format_estimate(estimate, digits, signs=True)
    if text and estimate.low <= 0 <= estimate.high:
        return f"{text}, {NOISE}"
    return text
