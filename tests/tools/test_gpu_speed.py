"""The clock of GPUs: what it times, here in tiny models, and its tables."""

import dataclasses
import json

import pytest

from tests.helpers.run_command import call, start
from tools import gpu_speed

SMOKE = ["--smoke", "--warmup=2", "--repeats=2", "--seconds=0", "--cases=deit_ti"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Smoke models of three blocks and fewer patches, which compile fast."""
    monkeypatch.setitem(gpu_speed.SMOKE, "depth", 3)
    case = dataclasses.replace(gpu_speed.CASES["deit_ti"], side=96)
    monkeypatch.setitem(gpu_speed.CASES, "deit_ti", case)


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_settings_are_timed_beside_the_dense_model(tmp_path):
    """Here, on a CPU, one of them in every way, and in the smallest batch."""
    file = tmp_path / "times"
    words = [*SMOKE, "--at-once", 5, 1, "--models=half", "--gelus=tanh"]
    words += ["--size-forms", "bias", "direction"]
    words += ["--precisions=highest", f"--times={file}"]
    out = call(gpu_speed.main, *words).ok().out
    rows = rows_of(file)
    ways = [("dense", None), ("half", "bias"), ("half", "direction")]
    assert [(row["model"], row["sizes"]) for row in rows] == 2 * ways
    assert [row["batch"] for row in rows] == 3 * [5] + 3 * [1]
    assert {row["precision"] for row in rows} == {"highest"}
    for dense, half, other in (rows[:3], rows[3:]):
        assert half["macs"] == pytest.approx(2, abs=0.05)
        ratio = half["rate"][0] / dense["rate"][0]
        assert half["ratio"][1] <= ratio * 1.5 and len(half["turns"]) == 2
        assert (other["gelu"], dense["ratio"]) == ("tanh", [1, 1, 1])
    assert [bool(row["latency"]) for row in rows] == 3 * [False] + 3 * [True]
    assert "| half | tanh | direction | highest |" in out


def test_smaller_images_have_their_size_and_a_stem_is_named(tmp_path):
    file = tmp_path / "times"
    words = [*SMOKE, "--at-once=2", f"--times={file}"]
    words += ["--models", "dense at 160 pixels", "dense with conv stem"]
    call(gpu_speed.main, *words).ok()
    rows = rows_of(file)
    assert [row["image_size"] for row in rows] == [96, 160, 96]
    assert [row["stem"] for row in rows] == ["patch", "patch", "conv"]


def test_timm_takes_its_turn_with_either_gelu(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    compiled = []

    def compile(run, dynamic, mode):
        compiled.append((dynamic, mode))
        return run

    monkeypatch.setattr(torch, "compile", compile)
    file = tmp_path / "times"
    words = [*SMOKE, "--models=dense", "--at-once=2", f"--times={file}"]
    call(gpu_speed.main, *words, "--beside", *gpu_speed.ACTS).ok()
    timed = [(row["library"], row["gelu"]) for row in rows_of(file)]
    assert timed[0] == ("imagepiece_jax", "exact")
    gelus = {"timm": "exact", "timm-tanh": "tanh", "timm-graphs": "exact"}
    assert timed[1:] == [*gelus.items()]
    assert compiled == [(False, None), (False, None), (False, "reduce-overhead")]
    call(gpu_speed.main, f"--show={file}").ok()


def row(model, seconds, **fields):
    """A line of a file: a DeiT-S of one run."""
    usual = {"size": "deit_s", "batch": 2, "runtime": "abacus", "run": "today"}
    usual |= {"library": gpu_speed.OURS, "gelu": "exact", "sizes": None, "gmacs": 4.0}
    usual |= {"precision": "default", "latency": None, "model": model}
    return usual | {"turns": seconds} | fields


@pytest.fixture
def rows():
    tanh = {"gelu": "tanh"}
    return gpu_speed.with_ratios(
        [
            row("dense", [4.0, 4.0, 8.0], latency=[5.0, 5.0, 5.0]),
            row("dense", [3.0, 3.0, 3.0], **tanh),
            row("half", [2.0, 1.0, 4.0], gmacs=2.0, latency=[5.0, 4.0, 2.5]),
            row("half", [2.0, 2.0, 1.0], gmacs=2.0, sizes="direction", **tanh),
            row("dense", [6.0, 6.0, 6.0], library="timm", gmacs=None),
        ]
    )


def test_ratios_are_to_the_dense_model_of_the_same_gelu_turn_by_turn(rows):
    assert [tuple(each["ratio"]) for each in rows] == [
        (1, 1, 1),
        (1, 1, 1),
        (2, 2, 4),
        (1.5, 1.5, 3),
        (4 / 6, 4 / 6, 8 / 6),
    ]
    assert [each.get("macs") for each in rows] == [1, 1, 2, 2, None]


def test_a_table_beside_timm(rows):
    _, _, exact, tanh = gpu_speed.timm_table(rows).splitlines()
    assert exact == "| DeiT-S | 2 | exact | 1.50 [0.75, 1.50] |  |  |"
    assert tanh == "| DeiT-S | 2 | tanh | 2.00 [2.00, 2.00] |  |  |"


ABSENT = ("ml_collections", "tensorflow", "tensorflow_datasets", "array_record")
ALONE = """
import sys
sys.modules.update(dict.fromkeys(NAMES))
from tools import gpu_speed, torch_baselines
"""


@pytest.mark.slow  # imports JAX anew
def test_it_starts_where_only_jax_is_installed():
    """And no library that reads configs or data sets."""
    ended = start("-c", ALONE.replace("NAMES", repr(ABSENT)))
    assert ended.status == 0, ended
