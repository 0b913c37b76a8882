"""The declared experiment on schedules in training: tables from lines of its runs.

What was compared is declared in docs/tables/trained_schedules/declared.md, and the
experiment is over: nothing that decides here may change. experiments/README.md says by
which code its runs were made.
"""

import numpy as np

from experiments import intervals, retokenization, study
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.evaluate import statistics

FOLDER = retokenization.FOLDER.parent / "trained_schedules"
SYSTEMS = {
    "dropping_conv": "class attention, dropped, ImagePiece's nine steps",
    "evit": "class attention, dropped, stages 3, 6 and 9",
    "evit_proportional": "class attention, dropped, proportional",
    "tome": "ToMe's matching, merged, constant",
    "tome_proportional": "ToMe's matching, merged, proportional",
}
# name: (claim, system, system whose accuracy is subtracted).
CONTRASTS = {
    "T1": ("class attention: proportional - stages", "evit_proportional", "evit"),
    "T2": ("ToMe's matching: proportional - constant", "tome_proportional", "tome"),
}


def read_accuracies() -> dict[str, np.ndarray]:
    """acc1 in percent, [seeds], by system."""
    runs = retokenization.read_runs(FOLDER, SYSTEMS)
    return {system: retokenization.accuracy(runs[system]) for system in SYSTEMS}


def systems_table(acc1: dict[str, np.ndarray]) -> str:
    """Accuracy of the systems, mean and by seed."""
    lines = []
    for system, title in SYSTEMS.items():
        accuracies = acc1[system]
        mean = statistics.format_estimate(intervals.student(accuracies))
        by_seed = " ".join(f"{each:.1f}" for each in accuracies)
        lines.append([title, mean, by_seed])
    return markdown_table(["system", "acc1, %", "by seed"], lines)


def contrasts_table(acc1: dict[str, np.ndarray]) -> str:
    """T1 and T2: paired, two-sided, corrected together."""
    tests = []
    for name, (claim, ours, theirs) in CONTRASTS.items():
        tests.append(study.paired_test(name, claim, acc1[ours], acc1[theirs]))
    return study.tests_table(tests, "", "contrast", "points", digits=2)


def rounding_table(acc1: dict[str, np.ndarray]) -> str:
    """`dropping_conv` here and in the experiment on retokenization, seed by seed."""
    system = "dropping_conv"
    runs = retokenization.read_runs(systems=[system])
    older = retokenization.accuracy(runs[system])
    ours = acc1[system]
    lines = []
    for name, accuracies in (("older code", older), ("this code", ours)):
        by_seed = [f"{each:.1f}" for each in accuracies]
        lines.append([name, *by_seed, f"{accuracies.mean():.1f}"])
    points = ours - older
    by_seed = [f"{each:+.1f}" for each in points]
    change = statistics.format_difference(intervals.student(points))
    lines.append(["points", *by_seed, change])
    seeds = [f"seed {seed}" for seed in retokenization.SEEDS]
    return markdown_table(["acc1, %", *seeds, "mean"], lines)
