"""The clock of towers: what it times, here on a tiny one, and its table."""

import pytest

from experiments import towers
from imagepiece_jax.benchmark.timer import Timing
from tests.models import tiny


def test_forms_take_turns_in_each_runtime(monkeypatch):
    pytest.importorskip("openvino")
    rules = Timing(warmup=1, repeats=2, seconds=0.0)
    monkeypatch.setattr(towers, "RULES", rules)
    forms = {
        towers.DENSE: tiny.pretrained(None, num_classes=0),
        "0.5": tiny.pretrained("tome:macs=0.5", num_classes=0),
    }
    rows = towers.measure(forms)
    for runtime in towers.RUNTIMES:
        dense, half = [row for row in rows if row["runtime"] == runtime]
        assert dense["ratio"] == (1, 1, 1)
        assert 0 < half["ratio"][1] <= half["ratio"][0] <= half["ratio"][2]
        assert half["gmacs"] / dense["gmacs"] == pytest.approx(0.5, abs=0.1)
    table = towers.table(rows)
    assert table.count("\n| ") == 3  # the line of dashes, and two forms
    assert table.count("]") == 4 + 2
