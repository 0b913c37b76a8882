import dataclasses
import json

import pytest

from tests.helpers.run_command import call
from tools import gpu_speed

SMOKE = ["--smoke", "--warmup=2", "--repeats=2", "--seconds=0", "--cases=deit_ti"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Smoke models of three blocks and fewer patches, which compile fast."""
    monkeypatch.setitem(gpu_speed.SMOKE, "depth", 3)
    case = dataclasses.replace(gpu_speed.CASES["deit_ti"], side=96)
    monkeypatch.setitem(gpu_speed.CASES, "deit_ti", case)


def test_settings_are_timed_beside_the_dense_model(tmp_path):
    """One setting in all of its ways, also in the smallest batch."""
    file = tmp_path / "times"
    words = [*SMOKE, "--at-once", 5, 1, "--models=half", "--gelus=tanh"]
    words += ["--size-forms", "bias", "direction"]
    words += ["--precisions=highest", f"--times={file}"]
    out = call(gpu_speed.main, *words).ok().out
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    ways = [("dense", None), ("half", "bias"), ("half", "direction")]
    assert [(row["model"], row["sizes"]) for row in rows] == 2 * ways
    assert [row["batch"] for row in rows] == 3 * [5] + 3 * [1]
    assert {row["precision"] for row in rows} == {"highest"}
    for dense, half, direction in (rows[:3], rows[3:]):
        assert half["macs"] == pytest.approx(2, abs=0.05)
        ratio = half["rate"][0] / dense["rate"][0]
        assert half["ratio"][1] <= ratio * 1.5 and len(half["turns"]) == 2
        assert (direction["gelu"], dense["ratio"]) == ("tanh", [1, 1, 1])
    assert [bool(row["latency"]) for row in rows] == 3 * [False] + 3 * [True]
    assert "| half | tanh | direction | highest |" in out


def row(model, seconds, **fields):
    """A line of a file: a DeiT-S of one run."""
    base = {"size": "deit_s", "batch": 2, "runtime": "abacus", "run": "today"}
    base |= {"library": gpu_speed.OURS, "gelu": "exact", "sizes": None, "gmacs": 4.0}
    base |= {"precision": "default", "latency": None, "model": model}
    return base | {"turns": seconds} | fields


def test_ratios_compare_equal_gelus_turn_by_turn():
    tanh = {"gelu": "tanh"}
    rows = [
        row("dense", [4.0, 4.0, 8.0]),
        row("dense", [3.0, 3.0, 3.0], **tanh),
        row("half", [2.0, 1.0, 4.0], gmacs=2.0),
        row("half", [2.0, 2.0, 1.0], gmacs=2.0, sizes="direction", **tanh),
        row("dense", [6.0, 6.0, 6.0], library="timm", gmacs=None),
    ]
    rows = gpu_speed.with_ratios(rows)
    assert [tuple(row["ratio"]) for row in rows] == [
        (1, 1, 1),
        (1, 1, 1),
        (2, 2, 4),
        (1.5, 1.5, 3),
        (4 / 6, 4 / 6, 8 / 6),
    ]
    assert [row.get("macs") for row in rows] == [1, 1, 2, 2, None]
