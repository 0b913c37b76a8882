"""Speed goals, judged from benchmark lines."""

import json

import pytest

from tests.runs import ROOT
from tools import goals


def row(config, seconds, mac_ratio=1.0, gelu="tanh", batch=256, mode="inference"):
    return {
        "config": config,
        "seconds_a_call": seconds,
        "mac_ratio": mac_ratio,
        "gelu": gelu,
        "batch_size": batch,
        "mode": mode,
    }


@pytest.fixture
def found(tmp_path):
    """Two runs' lines, read back."""
    one = [row("deit_s", [6, 6, 12]), row("deit_s_evit", [4.0, 5, 6], 1.5)]
    two = [row("deit_s", [1.0], gelu="exact"), row("deit_s_evit", [9.0], 1.5)]
    two += [row("timm deit_s, torch.compile", [1.5], gelu="exact")]
    for name, rows in (("1", one), ("2", two)):
        lines = "".join(json.dumps(r) + "\n" for r in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return goals.runs(tmp_path)


@pytest.mark.parametrize(
    "goal, batch, ratios",
    [
        # 6 / 4, 6 / 5 and 12 / 6 times as fast, round by round
        (goals.Goal("deit_s_evit", "deit_s", 1), 256, (1.5, 1.2, 2.0)),
        # ... of the 1.5 times that MACs predict
        (
            goals.Goal("deit_s_evit", "deit_s", 1, of_macs=True),
            256,
            (1.0, 0.8, 2 / 1.5),
        ),
        (goals.Goal("deit_s", goals.TIMM.format("deit_s"), 1), 256, None),
        (
            goals.Goal("deit_s", goals.TIMM.format("deit_s"), 1, gelu="exact"),
            256,
            (1.5, 1.5, 1.5),
        ),
        (goals.Goal("deit_s_evit", "deit_s", 1), 1024, None),
        (goals.Goal("deit_s_evit", "deit_s", 1, mode="train"), 256, None),
    ],
)
def test_goals_compare_programs_of_one_run(found, goal, batch, ratios):
    measured = goals.measured(goal, batch, found)
    assert measured == (ratios and pytest.approx(ratios))


def test_the_table_shows_met_and_open_goals(found):
    lines = goals.table(found).splitlines()
    assert (
        "| deit_s_evit (tanh GELU) ≥ 0.9 of the MAC ratio × deit_s | inference | 256 "
        "| 1.000 (0.800 to 1.333) | yes |"
    ) in lines
    assert sum("not measured" in line for line in lines) == len(lines) - 2 - 2


def test_the_documented_goals_are_these():
    text = (ROOT / "docs" / "goals.md").read_text()
    assert text.startswith(goals.HEAD) and text.endswith(goals.REDUCTION)
    for goal in goals.GOALS:
        for batch in goal.batch_sizes:
            assert f"| {goal} | {goal.mode} | {batch} | " in text
