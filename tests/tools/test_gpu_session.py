"""The GPU session's commands: every one parses, and a failing one stops no other."""

import os
import re
import stat
import subprocess

import pytest

from imagepiece_jax.benchmark import device as benchmark_device
from imagepiece_jax.benchmark import suite
from imagepiece_jax.commands import benchmark, doctor
from tests.command import call
from tests.runs import ROOT
from tools import (
    attention_speed,
    gpu_speed,
    reduction_speed,
    torch_baselines,
)

COMMANDS = {
    "benchmark": benchmark.main,
    "torch_baselines": torch_baselines.main,
    "reduction_speed": reduction_speed.main,
    "attention_speed": attention_speed.main,
    "gpu_speed": gpu_speed.main,
    "doctor": doctor.main,
}
RUN = ("benchmark", "torch_baselines")


def session(name, folder):
    """Run a session whose commands are printed and fail: (exit status, log)."""
    python = folder / "python"
    # Words are apart by tabs: a folder's name may have spaces.
    python.write_text("#!/bin/sh\nprintf '%s\\t' \"$@\"\necho\nexit 1\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {"OUT": str(folder), "PYTHON": str(python)}
    words = [ROOT / "tools/gpu_session.sh", name]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    log = folder / "log.txt"
    return done, log.read_text() if log.exists() else ""


@pytest.mark.parametrize("name", ["256", "1024", "train"])
def test_commands_parse_and_a_failing_one_stops_no_other(name, tmp_path, monkeypatch):
    _, log = session(name, tmp_path)
    lines = re.findall(
        r"^-m\t(?:imagepiece_jax\t|tools\.)(\S+)\t(.*)", log, re.MULTILINE
    )
    started = re.findall(r"^== (\w+): /", log, re.MULTILINE)
    assert re.findall(r"^== (\w+): exit 1 after", log, re.MULTILINE) == started
    assert len(started) > 3
    compared = set()
    monkeypatch.setattr(benchmark_device, "use", lambda name: None)
    monkeypatch.setattr(torch_baselines, "prepare", lambda names: None)
    monkeypatch.setattr(
        suite, "groups", lambda configs, *_: compared.update(configs) or [None]
    )
    monkeypatch.setattr(suite, "run_all", lambda *_: None)
    monkeypatch.chdir(ROOT)
    for command, words in lines:
        main = COMMANDS[command]
        run = main if command in RUN else lambda: None
        ended = call(run, *words.split("\t")[:-1])
        assert (ended.status, ended.err) == (0, "")
    assert {"deit_s", "deit_s_imagepiece"} <= compared


def test_an_unknown_session(tmp_path):
    done, _ = session("later", tmp_path)
    message = "error: later is no session; allowed: 256, 1024 and train\n"
    assert (done.returncode, done.stderr) == (2, message)
