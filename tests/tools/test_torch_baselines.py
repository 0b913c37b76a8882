import json

import pytest

from tests.helpers.run_command import call
from tests.helpers.tiny_benchmark import SMALL
from tools import torch_baselines

pytest.importorskip("timm")


@pytest.mark.slow  # compiles two steps of training
def test_both_libraries_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_baselines, "VARIANTS", ("eager",))
    out = tmp_path / "out.json"
    words = ["deit_ti", "--image-size=32", *SMALL]
    rows = []
    for mode in ("inference", "train"):
        ended = call(torch_baselines.main, *words, f"--mode={mode}", f"--json={out}")
        assert (ended.status, ended.err) == (0, "")
        rows += [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["mode"], row["config"]) for row in rows] == [
        ("inference", "dense"),
        ("inference", "timm deit_ti, eager"),
        ("train", "dense"),
        ("train", "timm deit_ti, eager"),
    ]
    _, dense, _, trained = rows
    assert trained["gmacs"] == pytest.approx(3 * dense["gmacs"])
    assert {"torch", "timm"} <= set(dense["versions"])
    assert all(row["throughput"] > 0 for row in rows)
