"""T1 and T2 of schedules in training, on made-up accuracies, against SciPy."""

import numpy as np
import scipy.stats

from experiments import trained_schedules


def test_contrasts_are_paired_two_sided_and_corrected_together():
    rng = np.random.default_rng(4)
    seeds = 6
    acc1 = {name: rng.normal(60, 0.4, seeds) for name in trained_schedules.SYSTEMS}
    acc1["tome_proportional"] -= 2.0
    text = trained_schedules.contrasts_table(acc1)
    lines = [line for line in text.splitlines() if line.startswith("| T")]
    pairs = [("evit_proportional", "evit"), ("tome_proportional", "tome")]
    p = [scipy.stats.ttest_rel(acc1[a], acc1[b]).pvalue for a, b in pairs]
    assert p[1] < p[0] / 2  # so that Holm doubles the second alone
    for line, one, corrected in zip(lines, p, (p[0], 2 * p[1]), strict=True):
        assert f"| {one:.3g} | {corrected:.3g} |" in line
    assert "| -2" in lines[1]
    assert lines[1].endswith("| decided |")
