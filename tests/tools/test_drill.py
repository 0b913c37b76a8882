"""The drill: a signal for each kind of command, and refused results."""

import signal
import subprocess

import numpy as np
import pytest

from tests.helpers import forked_processes, stored_programs
from tools import drill

RUNS = [("train", signal.SIGKILL, 3), ("train of two", signal.SIGTERM, 4)]
RUNS.append(("features", signal.SIGINT, 3))


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_begun")
@pytest.mark.parametrize("name, signum, count", RUNS)
def test_signals_leave_commands_resumable(tmp_path, monkeypatch, name, signum, count):
    monkeypatch.setattr(subprocess, "Popen", forked_processes.Process)
    monkeypatch.setattr(drill, "SIGNALS", (signum,))
    stored_programs.shared_folder(tmp_path / "cache")
    rows = [*drill.drill_commands(tmp_path, [name], 1, np.random.default_rng(0))]
    assert len(rows) == count
    assert all(row.passed for row in rows), rows


@pytest.mark.parametrize(
    "name, signum, statuses, left, text, right",
    [
        ("export", signal.SIGINT, [130], "nothing", "interrupted", True),
        ("export", signal.SIGINT, [0], "all", "HERE/model.onnx: 0.1 MB", True),
        ("export", signal.SIGINT, [130], "nothing", "", False),
        ("export", signal.SIGINT, [1], "nothing", "interrupted", False),
        ("export", signal.SIGINT, [130], "a part", "interrupted", False),
        ("export", signal.SIGTERM, [143], "all", "Traceback\nterminated", False),
        ("export", signal.SIGKILL, [137], "a part", "", False),
        ("features", signal.SIGKILL, [137], "a part", "", True),
        ("train of two", signal.SIGKILL, [137, 1], "a part", "", True),
        ("train of two", signal.SIGTERM, [143, 139], "a part", "stopped", False),
    ],
)
def test_verdicts(tmp_path, name, signum, statuses, left, text, right):
    run = drill.Run(tmp_path, name, "fault")
    run.log.write_text(text)
    assert drill.is_right(run, signum, 0, statuses, left) == right


def test_half_written_files_are_wrong(tmp_path):
    run = drill.Run(tmp_path, "features", "fault")
    run.log.write_text("interrupted")
    (run.folder / ".out.tmp").write_text("half")
    assert not drill.is_right(run, signal.SIGINT, 0, [130], "a part")
