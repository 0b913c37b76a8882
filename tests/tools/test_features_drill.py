"""The drill of features: a process that is killed twice, and one that is not."""

import pathlib
import subprocess

import numpy as np
import pytest

from tests import forked, programs
from tools import features_drill


@pytest.mark.slow
def test_two_kills_and_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", forked.Process)
    programs.of_processes(tmp_path / "cache")
    found = features_drill.drill(tmp_path, 2, 80, [], np.random.default_rng(0))
    assert found["complete"]
    assert found["same"]
    first, second = found["killed"]
    assert first["rows"] == 0
    # On a busy machine the last rows may be there before the signal is.
    assert second["rows"] <= second["found"] <= 80
    pooled = np.load(tmp_path / "killed" / "pooled.npy")
    assert np.isnan(pooled).all(axis=1).sum() == features_drill.DAMAGED
    photograph = next(pathlib.Path(tmp_path, "photographs").iterdir())
    assert photograph.name in (tmp_path / "killed" / "paths.txt").read_text()
    (tmp_path / "killed" / "pooled.npy").write_bytes(b"")
    bits = [features_drill.content(tmp_path / name) for name in ("whole", "killed")]
    assert bits[0] != bits[1]
