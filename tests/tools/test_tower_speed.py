"""The clock of towers: what it times, here on a tiny one, and its table."""

import pytest

from imagepiece_jax.common.timing_rules import Rules
from tests.models import tiny
from tools import tower_speed


def test_forms_take_turns_in_each_runtime(monkeypatch):
    pytest.importorskip("openvino")
    rules = Rules(warmup=1, repeats=2, seconds=0.0)
    monkeypatch.setattr(tower_speed, "RULES", rules)
    towers = {
        tower_speed.DENSE: tiny.pretrained(None, num_classes=0),
        "0.5": tiny.pretrained("tome:macs=0.5", num_classes=0),
    }
    rows = tower_speed.measure(towers)
    for runtime in tower_speed.RUNTIMES:
        dense, half = [row for row in rows if row["runtime"] == runtime]
        assert dense["ratio"] == (1, 1, 1)
        assert 0 < half["ratio"][1] <= half["ratio"][0] <= half["ratio"][2]
        assert half["gmacs"] / dense["gmacs"] == pytest.approx(0.5, abs=0.1)
    table = tower_speed.table(rows)
    assert table.count("\n| ") == 3  # the line of dashes, and two forms
    assert table.count("]") == 4 + 2
