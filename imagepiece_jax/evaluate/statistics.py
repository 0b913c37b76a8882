"""95 % confidence intervals of accuracies and paired differences.

The only place in the package where an interval is computed, so that the same figure has
the same interval wherever it is printed. Accuracies are in percent, their differences
in points. Two models are always compared on the same images, in the same order.

Sources: Student (1908), a mean; Wilson (1927), a proportion; Agresti and Min (2005), a
difference of paired proportions; McNemar (1947), its test; Holm (1979), many tests at
once.
"""

import math
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
    """Percent of right answers, with its interval. bool [images].

    The interval is Wilson's: unlike value +- 1.96 standard errors it stays inside
    0..100 and is not empty at its ends.
    """
    right = np.asarray(right)
    n = right.size
    share = float(right.mean())
    scale = 1 + Z**2 / n
    center = (share + Z**2 / (2 * n)) / scale
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / scale
    return Estimate(100 * share, 100 * (center - half), 100 * (center + half))


def paired_difference(right: ArrayLike, base: ArrayLike) -> Estimate:
    """Accuracy of `right` less that of `base` in points, paired by image.

    bool [images] twice. The interval is that of Agresti and Min: half an image more in
    each cell of the 2 x 2 table, so that it is not empty where few images differ.
    """
    gained, lost = discordant(right, base)
    right = np.asarray(right)
    n = right.size + 2
    center = (gained - lost) / n
    differ = gained + lost + 1
    half = Z * math.sqrt(differ - (gained - lost) ** 2 / n) / n
    low = 100 * (center - half)
    high = 100 * (center + half)
    value = 100 * (gained - lost) / right.size
    return Estimate(value, max(low, -100.0), min(high, 100.0))


def mean_difference(values: ArrayLike, base: ArrayLike) -> Estimate:
    """Mean of values - base, paired by image, with Student's interval. [images] twice.

    Two images or more.
    """
    change = np.asarray(values, np.float64) - np.asarray(base, np.float64)
    half = special.stdtrit(change.size - 1, 0.975) * change.std(ddof=1)
    half /= math.sqrt(change.size)
    value = change.mean()
    return Estimate(float(value), float(value - half), float(value + half))


def discordant(right: ArrayLike, base: ArrayLike) -> tuple[int, int]:
    """(images that only `right` has right, images that only `base` has right)."""
    right = np.asarray(right, bool)
    base = np.asarray(base, bool)
    if right.shape != base.shape:
        raise ValueError(f"answers of {right.shape} and {base.shape} are not paired")
    return int(np.sum(right & ~base)), int(np.sum(base & ~right))


def mcnemar(right: ArrayLike, base: ArrayLike) -> float:
    """Exact two-sided p of McNemar's test that neither is better. bool [images]."""
    gained, lost = discordant(right, base)
    trials = gained + lost
    fewer = min(gained, lost)
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


def format_estimate(
    estimate: Estimate | None, digits: int = 1, signs: bool = False
) -> str:
    """An estimate as text, such as "84.9 [82.5, 87.0]"; "" for None and NaN.

    signs: whether numbers above 0 have a "+"
    """
    if estimate is None or math.isnan(estimate.value):
        return ""
    form = f"+.{digits}f" if signs else f".{digits}f"
    value, low, high = (format(number, form) for number in estimate)
    return f"{value} [{low}, {high}]"


def format_difference(estimate: Estimate | None, digits: int = 1) -> str:
    """ "+1.8 [-0.0, +3.6], within noise": with signs, and a word on noise."""
    text = format_estimate(estimate, digits, signs=True)
    if text and estimate.low <= 0 <= estimate.high:
        return f"{text}, {NOISE}"
    return text
