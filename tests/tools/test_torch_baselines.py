import json

import pytest

from tests.helpers.run_command import call
from tests.helpers.tiny_benchmark import SMALL
from tools import torch_baselines

pytest.importorskip("timm")


@pytest.mark.slow  # compiles a step of training
def test_both_libraries_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_baselines, "VARIANTS", ("eager",))
    out = tmp_path / "out.json"
    words = ["deit_ti", "--image-size=32", *SMALL, f"--json={out}"]
    call(torch_baselines.main, *words).quiet()
    ours, timms = [json.loads(line) for line in out.read_text().splitlines()]
    assert (ours["config"], timms["config"]) == ("dense", "timm deit_ti, eager")
    assert timms["gmacs"] == ours["gmacs"]
    assert {"torch", "timm"} <= set(ours["versions"])
    assert min(ours["throughput"], timms["throughput"]) > 0
