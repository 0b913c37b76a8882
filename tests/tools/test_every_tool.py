"""Tools without a file of tests."""

import importlib
import json
import types

import jax
import numpy as np
import pytest

from tests.command import call
from tests.runs import ROOT
from tests.tools.test_compile_only import COPY, TEXT
from tools import attention_speed, gpu_speed, h200, large_models, onnx_speed


@pytest.mark.parametrize("name", ["public_models", "fixtures"])
def test_tools_that_read_other_libraries_start(name):
    pytest.importorskip("timm")
    importlib.import_module(f"tools.{name}")


def test_a_row_of_large_models_is_matched_in_cost(monkeypatch):
    monkeypatch.setattr(h200, "device", lambda: jax.devices("cpu")[0])
    text = TEXT.replace("LINES", COPY)
    monkeypatch.setattr(h200, "compile_for", lambda *args, **options: text)
    rows = large_models.compared("deit_ti", 64)
    dense, tome, imagepiece = rows
    assert dense[:4] == ["deit_ti", 64, "dense", 17]
    assert [row[5:8] for row in rows] == [[1, "0.004", "1.00"]] * 3
    for row in (tome, imagepiece):
        assert 1.4 < float(row[8]) < 2
        assert row[3] < 17


def test_the_page_of_large_models_says_what_was_timed(tmp_path, monkeypatch):
    page = ROOT / "docs" / "tables" / "large_models.md"
    text = page.read_text("utf-8")
    start = f"{large_models.TITLE}{large_models.timed()}{large_models.NOTE}"
    assert text.startswith(start)
    line = {"size": "vit_l", "batch": 8, "runtime": "abacus", "run": "today"}
    line |= {
        "library": "imagepiece_jax",
        "gelu": "tanh",
        "sizes": None,
        "latency": None,
    }
    line |= {"precision": "default", "turns": [2.0], "gmacs": 2.0, "model": "dense"}
    half = line | {"model": "half", "turns": [1.0], "gmacs": 1.0}
    rows = gpu_speed.with_ratios([line, half])
    file = tmp_path / "large.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(large_models, "FILE", file)
    copy = tmp_path / "page.md"
    copy.write_text(text)
    call(large_models.main, f"--out={copy}", "--timed").ok()
    written = copy.read_text()
    assert (
        "| ViT-L/16 | 8 | half | tanh |  | exact | 4 | 8 | 2.00 [2.00, 2.00] |"
        in written
    )
    assert written.endswith(text[len(start) :])


@pytest.fixture
def onnx_shapes(monkeypatch):
    """Shapes of the images that timm gets of onnx_speed, where all else is instant."""
    shapes = []

    def nothing(*_, **options):
        return types.SimpleNamespace(SerializeToString=bytes)

    names = ("fresh_variables", "Pretrained", "onnx_model", "optimize")
    for name in (*names, "_onnxruntime", "_openvino", "_jax"):
        monkeypatch.setattr(onnx_speed, name, nothing)
    models = dict.fromkeys(("dense", "ToMe", "dense at 160 pixels"), onnx_speed.DENSE)
    monkeypatch.setattr(onnx_speed, "MODELS", models)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(
        onnx_speed, "_timm", lambda size, images: shapes.append(images.shape)
    )
    monkeypatch.setattr(
        onnx_speed.timer, "measure", lambda jobs, *_, **rest: dict.fromkeys(jobs, [1])
    )
    return shapes


def test_pytorch_is_timed_on_images_of_its_models_size(tmp_path, onnx_shapes):
    """timm's model takes no others, and the last of ours takes smaller ones."""
    words = [f"--times={tmp_path / 'times'}", "--size=deit_ti", "--batch_sizes=2"]
    call(onnx_speed.main, *words).ok()
    assert onnx_shapes == [(2, 224, 224, 3)]


def test_a_model_is_timed_beside_the_dense_one(tmp_path, onnx_shapes):
    words = [f"--times={tmp_path / 'times'}", "--size=deit_ti", "--batch_sizes=2"]
    out = call(onnx_speed.main, *words, "--models=ToMe").ok().out
    assert "| JAX | dense |" in out and "| JAX | ToMe |" in out
    assert "160 pixels" not in out
    assert onnx_shapes == []
    error = call(onnx_speed.main, *words, "--models=Tome").err
    assert error.startswith("error: --models is 'Tome'; allowed: dense, ToMe")
    error = call(onnx_speed.main, *words[:2], "--batch_sizes=8,x").err
    assert error.startswith("error: --batch_sizes is 'x'; allowed: whole numbers")


def test_attention_is_timed_with_and_without_sizes(tmp_path, monkeypatch):
    """Microseconds of one of eight attentions of a program, for each way to attend."""
    file = tmp_path / "times"

    def measure(jobs, rules):
        return {name: [8e-6, 4e-6, 16e-6] for name in jobs}

    monkeypatch.setattr(attention_speed.timer, "measure", measure)
    words = ["--images=2", "--lengths=3,4", "--heads=1", f"--json={file}"]
    call(attention_speed.main, *words).ok()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    ways = ["none", "sizes", "rows"]
    assert [row["way"] for row in rows] == 2 * ways
    assert [row["tokens"] for row in rows] == 3 * [3] + 3 * [4]
    assert {tuple(row["us"]) for row in rows} == {(1.0, 0.5, 2.0)}
    error = call(attention_speed.main, "--lengths=3,many").err
    assert error.startswith("error: --lengths is 'many'; allowed: whole numbers")


def test_ways_to_give_attention_its_sizes_agree():
    *heads, sizes = attention_speed.random_inputs(0, 7, "float32")
    own, rows = (
        attention_speed.ways("xla")[way](*heads, sizes) for way in ("sizes", "rows")
    )
    np.testing.assert_allclose(own, rows, atol=1e-6)
    none = attention_speed.ways("xla")["none"](*heads, sizes)
    assert np.abs(own - none).max() > 0.01
