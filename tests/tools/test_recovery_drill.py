"""The drill of recover: what it finds in folders, and one round of it."""

import shutil
import subprocess

import numpy as np
import pytest

from tests import forked, programs
from tools import recovery_drill


@pytest.mark.slow
def test_a_full_disk_and_two_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", forked.Process)
    programs.of_processes(tmp_path / "cache")
    rows = [*recovery_drill.drill(tmp_path, np.random.default_rng(0), 0)]
    assert [row.fault for row in rows] == [
        "none",
        "full disk",
        "two at once",
        "two at once",
    ]
    assert all(row.passed for row in rows), rows
    assert [row.found for row in rows] == ["complete", "nothing"] + 2 * ["complete"]
    assert rows[0].status == 0
    assert rows[1].status == 1
    run = recovery_drill.Recovery(tmp_path, "damaged")
    shutil.copytree(tmp_path / "whole" / "out", run.out)
    file = run.out / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert run.found().startswith("damaged")
    row = run.row("none", "", 0, ["nothing", "complete"])
    assert not row.passed
    assert row.found in recovery_drill.table([row])
    shutil.rmtree(run.out)
    assert run.found() == "nothing"
    shutil.copytree(tmp_path / "weights", run.out)
    assert run.found() == "the old one"
