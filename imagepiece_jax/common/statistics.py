"""95 % confidence intervals of accuracies and paired differences.

No other file computes an interval, so a figure has the same interval wherever it is
printed. Accuracies are in percent, differences in points. Models are always compared on
the same images, in the same order.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

NORMAL_QUANTILE = 1.959964  # standard errors of a 95 % interval
WITHIN_NOISE = "within noise"


class Estimate(NamedTuple):
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def estimate_accuracy(right: ArrayLike) -> Estimate:
    """Percent of right answers, with its interval (Wilson, 1927). bool [images]."""
    right = np.asarray(right)
    n = right.size
    # Unlike value +- 1.96 standard errors, Wilson's interval stays inside 0..100 and is
    # not empty at the ends.
    share = float(right.mean())
    scale = 1 + NORMAL_QUANTILE**2 / n
    center = (share + NORMAL_QUANTILE**2 / (2 * n)) / scale
    half = (
        NORMAL_QUANTILE
        * math.sqrt(share * (1 - share) / n + NORMAL_QUANTILE**2 / (4 * n**2))
        / scale
    )
    # Rounding must not put an end on the other side of the share.
    ends = (min(share, center - half), max(share, center + half))
    return Estimate(100 * share, *(100 * end for end in ends))


def paired_difference(right: ArrayLike, base: ArrayLike) -> Estimate:
    """Accuracy `right` - `base` in points, paired by image. bool [images] twice."""
    gained, lost = count_discordant(right, base)
    right = np.asarray(right)
    # Agresti and Min, 2005, for paired proportions: half an image more in every cell of
    # the 2 x 2 table, so the interval is not empty where few images differ.
    n = right.size + 2
    center = (gained - lost) / n
    differ = gained + lost + 1
    half = NORMAL_QUANTILE * math.sqrt(differ - (gained - lost) ** 2 / n) / n
    low = 100 * (center - half)
    high = 100 * (center + half)
    value = 100 * (gained - lost) / right.size
    return Estimate(value, max(low, -100.0), min(high, 100.0))


def mean_difference(values: ArrayLike, base: ArrayLike) -> Estimate:
    """Mean of values - base, paired by image, with its interval (Student, 1908)."""
    # [images] twice, two images or more: a single image has no deviation.
    change = np.asarray(values, np.float64) - np.asarray(base, np.float64)
    half = special.stdtrit(change.size - 1, 0.975) * change.std(ddof=1)
    half /= math.sqrt(change.size)
    value = change.mean()
    return Estimate(float(value), float(value - half), float(value + half))


def mean_share(shares: ArrayLike) -> Estimate:
    """Mean of percentages, with its interval inside 0..100. [images]."""
    ends = mean_difference(shares, np.zeros(len(shares)))
    return Estimate(*np.clip(ends, 0, 100).tolist())


def count_discordant(right: ArrayLike, base: ArrayLike) -> tuple[int, int]:
    """(images right only in `right`, images right only in `base`)."""
    right = np.asarray(right, bool)
    base = np.asarray(base, bool)
    if right.shape != base.shape:
        raise ValueError(f"answers of {right.shape} and {base.shape} are not paired")
    return int(np.sum(right & ~base)), int(np.sum(base & ~right))


def mcnemar_p(right: ArrayLike, base: ArrayLike) -> float:
    """Exact two-sided p that neither is better (McNemar, 1947). bool [images]."""
    gained, lost = count_discordant(right, base)
    trials = gained + lost
    fewer = min(gained, lost)
    return min(1.0, 2 * float(special.bdtr(fewer, trials, 0.5)))


def holm_correction(p: ArrayLike) -> list[float]:
    """Correct p values of many tests by the step-down rule (Holm, 1979), in order."""
    # The chance that any corrected p below .05 is false is at most .05, however the
    # tests depend on each other.
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)  # smallest p: the test count; largest: 1
    raised = np.maximum.accumulate(factors * p[order])
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(raised, 1.0)
    return corrected.tolist()


def format_estimate(
    estimate: Estimate | None, digits: int = 1, signs: bool = False
) -> str:
    """Format as "84.9 [82.5, 87.0]", with "+" if `signs`; "" for None and NaN."""
    if estimate is None or math.isnan(estimate.value):
        return ""
    spec = f"+.{digits}f" if signs else f".{digits}f"
    value, low, high = (format(number, spec) for number in estimate)
    return f"{value} [{low}, {high}]"


def format_difference(estimate: Estimate | None, digits: int = 1) -> str:
    """Format a difference, with noise named: "+1.8 [-0.0, +3.6], within noise"."""
    text = format_estimate(estimate, digits, signs=True)
    if text and estimate.low <= 0 <= estimate.high:
        return f"{text}, {WITHIN_NOISE}"
    return text
