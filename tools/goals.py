"""Are the goals of speed met? A table from the lines that benchmarks wrote.

python tools/goals.py FOLDER

Reads every *.jsonl of the folder. A goal compares two programs that took turns in one
run, round by round: the median counts, lowest and highest stand beside it.
"""

import json
import pathlib
import statistics
import sys
from typing import NamedTuple

TIMM = "timm {}, torch.compile"


class Goal(NamedTuple):
    """`config` is to be so many `times` as fast as `than` at these batch sizes.

    With `of_macs` so many times what their MACs promise. `gelu` is that of `config`.
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
    """Rows of each file: what is in one file took turns."""
    files = sorted(pathlib.Path(folder).glob("*.jsonl"))
    return [[json.loads(line) for line in f.read_text().splitlines()] for f in files]


def measured(goal, batch_size, runs):
    """(median, lowest, highest) of the rounds' ratios; None where there are none."""
    for rows in runs:
        same = {
            row["config"]: row
            for row in rows
            if (row["mode"], row["batch_size"]) == (goal.mode, batch_size)
        }
        one, two = same.get(goal.config), same.get(goal.than)
        if one and two and one["gelu"] == goal.gelu:
            turns = zip(one["seconds_a_call"], two["seconds_a_call"], strict=True)
            promised = one["mac_ratio"] / two["mac_ratio"] if goal.of_macs else 1.0
            ratios = [theirs / ours / promised for ours, theirs in turns]
            return statistics.median(ratios), min(ratios), max(ratios)
    return None


def table(runs):
    """All goals as Markdown."""
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
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(table(runs(sys.argv[1])))
