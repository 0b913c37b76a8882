"""Speed goals on one H200, and which of them are met.

python -m tools.goals [FOLDER] > docs/goals.md

Reads every *.jsonl that benchmarks wrote into the folder. A goal compares two programs
that took turns in one run, round by round: the median counts, with lowest and highest.
"""

import json
import pathlib
import statistics
import sys
from typing import NamedTuple

TIMM = "timm {}, torch.compile"
HEAD = """# Speed goals

Written by `python -m tools.goals`. On one NVIDIA H200, bfloat16, images on the device;
both sides of a comparison take turns in one run. A goal on MACs is a share of the ratio
that the multiply-adds predict. `tools/gpu_session.sh` measures all goals on a machine
with one NVIDIA GPU, in three sessions of less than nine minutes each.

"""
REDUCTION = """
A further goal: one reduction step at batch 256, 197 tokens, width 384 takes at most
0.03 ms (`python -m tools.reduction_speed`), which is about the time in
which its keys and tokens are read and written once. Not measured.
"""


class Goal(NamedTuple):
    """`config` runs `times` times as fast as `than`, at each of these batch sizes.

    With `of_macs` `times` is relative to the ratio of their MACs. `gelu` is `config`'s.
    """

    config: str
    than: str
    times: float
    batch_sizes: tuple = (256, 1024)
    mode: str = "inference"
    gelu: str = "tanh"
    of_macs: bool = False

    def __str__(self):
        unit = " of the MAC ratio" if self.of_macs else ""
        return f"{self.config} ({self.gelu} GELU) ≥ {self.times}{unit} × {self.than}"


GOALS = (
    Goal("deit_s", TIMM.format("deit_s"), 1.5),
    Goal("deit_s", TIMM.format("deit_s"), 1.15, gelu="exact"),
    Goal("deit_s_imagepiece", "deit_s", 1.54),
    Goal("deit_s_imagepiece", TIMM.format("deit_s"), 2.3),
    Goal("deit_s_imagepiece_fast", "deit_s", 1.9),
    Goal("deit_ti_imagepiece", "deit_ti", 1.47),
    Goal("deit_s_evit", "deit_s", 0.9, of_macs=True),
    Goal("deit_s_tome", "deit_s", 0.9, of_macs=True),
    Goal("deit_s_imagepiece", "deit_s", 1.5, (256,), "train", "exact"),
    Goal("deit_s", TIMM.format("deit_s"), 1.2, (256,), "train", "exact"),
)


def runs(folder):
    """Return the rows of each file; programs of one file took turns."""
    files = sorted(pathlib.Path(folder).glob("*.jsonl"))
    return [[json.loads(line) for line in f.read_text().splitlines()] for f in files]


def measured(goal, batch_size, runs):
    """Return (median, lowest, highest) of the rounds' ratios; None if not measured."""
    for rows in runs:
        same = {
            row["config"]: row
            for row in rows
            if (row["mode"], row["batch_size"]) == (goal.mode, batch_size)
        }
        one, two = same.get(goal.config), same.get(goal.than)
        if one and two and one["gelu"] == goal.gelu:
            turns = zip(one["seconds_a_call"], two["seconds_a_call"], strict=True)
            predicted = one["mac_ratio"] / two["mac_ratio"] if goal.of_macs else 1.0
            ratios = [theirs / ours / predicted for ours, theirs in turns]
            return statistics.median(ratios), min(ratios), max(ratios)
    return None


def table(runs):
    """Return all goals as a Markdown table."""
    lines = ["| goal | mode | batch | measured | met |", "|---|---|---|---|---|"]
    for goal in GOALS:
        for batch_size in goal.batch_sizes:
            found = measured(goal, batch_size, runs)
            cells = "not measured", ""
            if found:
                median, low, high = found
                met = "yes" if median >= goal.times else "no"
                cells = f"{median:.3f} ({low:.3f} to {high:.3f})", met
            lines.append(
                f"| {goal} | {goal.mode} | {batch_size} | {' | '.join(cells)} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    found = runs(sys.argv[1]) if sys.argv[1:] else []
    print(HEAD + table(found) + "\n" + REDUCTION, end="")
