"""The benchmark of one reduction: its programs and its figures."""

import json

import numpy as np
import pytest

from imagepiece_jax.benchmark import device
from imagepiece_jax.common import timer
from tests.command import call
from tools import reduction_speed

TINY = ["--images=2", "--input=12", "--heads=1", "--dtype=float32"]


def test_figures_are_per_reduction(tmp_path, monkeypatch):
    """2 reductions a call of 0.8 s; 2e6 bytes/s is the copy rate."""
    called = []

    def measure(jobs, rules):
        called.append({name: job.call(0) for name, job in jobs.items()})
        return {name: [0.8, 0.4, 1.6] for name in jobs}

    monkeypatch.setattr(device, "peak_rates", lambda *_: device.PeakRates(1.0, 2e6))
    monkeypatch.setattr(timer, "measure", measure)
    monkeypatch.setattr(reduction_speed, "CHAIN", 2)
    out = tmp_path / "a.json"
    ended = call(reduction_speed.main, *TINY, f"--json={out}")
    assert (ended.status, ended.err) == (0, "")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    names = ["prune", "retokenize", "bipartite", "join", "join, fast"]
    assert [row["rule"] for row in rows] == names
    # 12 tokens: 3 candidates and 1 merge; 0.7 of them kept; 6 merges at most
    left = {"retokenize": 11, "prune": 8, "bipartite": 6, "join": 6, "join, fast": 6}
    for row in rows:
        spread = [row[key] for key in ("median", "low", "high")]
        assert spread == pytest.approx([400.0, 200.0, 800.0])
        # keys and tokens of 13 rows read, those kept written; 64 floats each
        bytes_moved = 2 * (13 + 13 + left[row["rule"]] + 1) * 64 * 4
        assert row["floor"] == pytest.approx(1e3 * bytes_moved / 2e6)
        results = called[0][row["rule"]]
        assert len(results) == 2
        assert {x.shape for x, _, _ in results} == {(2, left[row["rule"]] + 1, 64)}
        first, second = (np.asarray(x) for x, _, _ in results)
        assert (first != second).any()
        assert row["rule"] in ended.out
