"""95 % confidence intervals of accuracies (percent) and paired differences (points).

No other file computes an interval. Models are compared on the same images, in the same
order.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Num
from scipy import special

NORMAL_QUANTILE = 1.959964  # standard errors of a 95 % interval
WITHIN_NOISE = "within noise"
Answers = Bool[np.ndarray, " images"]  # whether each image's answer is right
Values = Num[np.ndarray, " images"]


class Estimate(NamedTuple):
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def estimate_accuracy(is_right: Answers) -> Estimate:
    """Percent of right answers, with its interval (Wilson, 1927)."""
    n = is_right.size
    # Unlike value +- 1.96 standard errors, Wilson's interval stays inside 0..100 and is
    # not empty at the ends.
    share = float(is_right.mean())
    squared_z = NORMAL_QUANTILE**2
    scale = 1 + squared_z / n
    center = (share + squared_z / (2 * n)) / scale
    variance = share * (1 - share) / n + squared_z / (4 * n**2)
    half_width = NORMAL_QUANTILE * math.sqrt(variance) / scale
    # Rounding must not put an end on the other side of the share, nor outside 0..100.
    low = max(0.0, min(share, center - half_width))
    high = min(1.0, max(share, center + half_width))
    return Estimate(100 * share, 100 * low, 100 * high)


def paired_difference(is_right: Answers, base_right: Answers) -> Estimate:
    """Accuracy `is_right` - `base_right` in points, paired by image."""
    num_gained, num_lost = count_discordant(is_right, base_right)
    # Agresti and Min, 2005, for paired proportions: half an image more in every cell of
    # the 2 x 2 table, so the interval is not empty where few images differ.
    n = is_right.size + 2
    center = (num_gained - num_lost) / n
    adjusted_discordant = num_gained + num_lost + 1
    variance = adjusted_discordant - (num_gained - num_lost) ** 2 / n
    half_width = NORMAL_QUANTILE * math.sqrt(variance) / n
    low = 100 * (center - half_width)
    high = 100 * (center + half_width)
    value = 100 * (num_gained - num_lost) / is_right.size
    return Estimate(value, max(low, -100.0), min(high, 100.0))


def mean_difference(values: Values, base_values: Values) -> Estimate:
    """Mean of values - base_values, paired, with its interval (Student, 1908)."""
    # Two images or more: a single image has no deviation.
    differences = np.asarray(values, np.float64) - np.asarray(base_values, np.float64)
    quantile = special.stdtrit(differences.size - 1, 0.975)
    half_width = quantile * differences.std(ddof=1) / math.sqrt(differences.size)
    mean = differences.mean()
    return Estimate(float(mean), float(mean - half_width), float(mean + half_width))


def mean_share(percentages: Values) -> Estimate:
    """Mean of percentages, with its interval inside 0..100."""
    estimate = mean_difference(percentages, np.zeros(len(percentages)))
    return Estimate(*np.clip(estimate, 0, 100).tolist())


def count_discordant(is_right: Answers, base_right: Answers) -> tuple[int, int]:
    """(images right only in `is_right`, images right only in `base_right`)."""
    return int(np.sum(is_right & ~base_right)), int(np.sum(base_right & ~is_right))


def mcnemar_p(is_right: Answers, base_right: Answers) -> float:
    """Exact two-sided p that neither is better (McNemar, 1947)."""
    num_gained, num_lost = count_discordant(is_right, base_right)
    num_fewer = min(num_gained, num_lost)
    return min(1.0, 2 * float(special.bdtr(num_fewer, num_gained + num_lost, 0.5)))


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Correct p values of many tests by the step-down rule (Holm, 1979), in order."""
    # The chance that any corrected p below .05 is false is at most .05, however the
    # tests depend on each other.
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)  # smallest p: the test count; largest: 1
    # No p may fall below a smaller p's correction.
    raised_p = np.maximum.accumulate(factors * p[order])
    corrected_p = np.empty_like(p)
    corrected_p[order] = np.minimum(raised_p, 1.0)
    return corrected_p.tolist()


def format_estimate(
    estimate: Estimate | None, digits: int = 1, signs: bool = False
) -> str:
    """Format as "84.9 [82.5, 87.0]", with "+" if `signs`; "" for None and NaN."""
    if estimate is None or math.isnan(estimate.value):
        return ""
    number_format = f"+.{digits}f" if signs else f".{digits}f"
    value, low, high = (format(number, number_format) for number in estimate)
    return f"{value} [{low}, {high}]"


def format_difference(estimate: Estimate | None, digits: int = 1) -> str:
    """Format a difference, with noise named: "+1.8 [-0.0, +3.6], within noise"."""
    estimate_text = format_estimate(estimate, digits, signs=True)
    if estimate and estimate_text and estimate.low <= 0 <= estimate.high:
        return f"{estimate_text}, {WITHIN_NOISE}"
    return estimate_text
