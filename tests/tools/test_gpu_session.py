import os
import re
import stat
import subprocess

import pytest

from tests.helpers.run_command import call, start
from tests.helpers.small_runs import ROOT
from tools import gpu_speed

COMMANDS = {"gpu_speed": gpu_speed.main, "doctor": lambda: None}


@pytest.mark.parametrize("name", ["compile_only", "gpu_speed", "onnx_speed"])
def test_a_command_starts(name):
    ended = start("-m", f"tools.{name}", "--help", imported=True)
    assert (ended.status, ended.err) == (0, "") and "usage:" in ended.out, ended


def run_session(folder, *parts):
    """Run parts with a Python that prints its words and fails; returns the log."""
    python = folder / "python"
    # Tabs separate words: a folder's name may have spaces.
    python.write_text("#!/bin/sh\nprintf '%s\\t' \"$@\"\necho\nexit 1\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {"OUT": str(folder), "PYTHON": str(python)}
    words = [ROOT / "tools/gpu_session.sh", *parts]
    subprocess.run(words, env=environment, capture_output=True)
    return (folder / "log.txt").read_text()


@pytest.fixture
def timed(monkeypatch):
    """Time nothing; collect the sizes."""
    sizes = []

    def measure(size, batches, dtype, rules):
        assert gpu_speed.list_ways(gpu_speed.CASES[size])
        sizes.append(size)
        return []

    monkeypatch.setattr(gpu_speed, "measure_case", measure)
    monkeypatch.chdir(ROOT)
    return sizes


def test_all_commands_parse_though_each_fails(tmp_path, timed):
    log = run_session(tmp_path, *map(str, range(1, 13)))
    lines = re.findall(r"^-m\t(?:imagepiece_jax\t|tools\.)(\S+)\t(.*)", log, re.M)
    started = re.findall(r"^== part (\d+): /", log, re.MULTILINE)
    assert re.findall(r"^== part (\d+): exit 1 after", log, re.MULTILINE) == started
    assert len(set(started)) == 12
    for command, words in lines:
        ended = call(COMMANDS[command], *words.split("\t")[:-1])
        assert ended.status == 0 and "error" not in ended.err
    assert {*timed} == gpu_speed.CASES.keys()
