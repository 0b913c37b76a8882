"""The declared experiment on schedules in training: tables from the JSONs of its runs.

What was compared is declared in docs/tables/trained_schedules/declared.md, and the
experiment is over: nothing that decides here may change. The runs beside it are of
`python -m experiments scratch`.
"""

import json
import pathlib

import numpy as np
from scipy import stats

from experiments import intervals, render, retokenization
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
LEVEL = 0.05  # of both tests together


def read_accuracies(folder: pathlib.Path = FOLDER) -> dict[str, np.ndarray]:
    """acc1 in percent, [seeds], by system."""
    return {
        system: np.array([_acc1(folder, system, s) for s in retokenization.SEEDS])
        for system in SYSTEMS
    }


def _acc1(folder, system, seed):
    text = (folder / f"{system}_seed{seed}.json").read_text("utf-8")
    return json.loads(text)["acc1"]


def systems_table(acc1: dict[str, np.ndarray]) -> str:
    """Accuracy of the systems, mean and by seed."""
    lines = [
        [title, statistics.format_estimate(intervals.student(acc1[system]))]
        + [" ".join(f"{each:.1f}" for each in acc1[system])]
        for system, title in SYSTEMS.items()
    ]
    return render.table(["system", "acc1, %", "by seed"], lines)


def contrasts_table(acc1: dict[str, np.ndarray]) -> str:
    """T1 and T2: paired, two-sided, corrected together."""
    points = [acc1[ours] - acc1[theirs] for _, ours, theirs in CONTRASTS.values()]
    p = [stats.ttest_1samp(each, 0.0).pvalue for each in points]
    lines = []
    for (name, (claim, *_)), each, one, corrected in zip(
        CONTRASTS.items(), points, p, statistics.holm(p), strict=True
    ):
        change = statistics.format_difference(intervals.student(each), 2)
        verdict = "decided" if corrected < LEVEL else "open"
        lines.append([name, claim, change, f"{one:.3g}", f"{corrected:.3g}", verdict])
    head = ["", "contrast", "points", "p", "p, Holm", "verdict"]
    return render.table(head, lines)


def rounding_table(acc1: dict[str, np.ndarray]) -> str:
    """`dropping_conv` here and in the experiment on retokenization, seed by seed."""
    system, seeds = "dropping_conv", retokenization.SEEDS
    older = np.array([_acc1(retokenization.FOLDER, system, seed) for seed in seeds])
    change = intervals.student(acc1[system] - older)
    lines = [
        ["older code", *(f"{each:.1f}" for each in older), f"{older.mean():.1f}"],
        ["this code", *(f"{each:.1f}" for each in acc1[system])],
        ["points", *(f"{each:+.1f}" for each in acc1[system] - older)],
    ]
    lines[1].append(f"{acc1[system].mean():.1f}")
    lines[2].append(statistics.format_difference(change))
    return render.table(["acc1, %", *(f"seed {s}" for s in seeds), "mean"], lines)
