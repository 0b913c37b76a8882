"""The tool's sentences and lines; `test_runtime_operators` runs it on a GPU."""

import json
import sys

import pytest

from imagepiece_jax.exporters.onnx_model import build_onnx_model
from tests.helpers import tiny_vit
from tools import webgpu_placement

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(build_onnx_model(tiny_vit.pretrained(depth=1)), path)
    return path


def call(monkeypatch, *words):
    """The status of the tool with these words."""
    monkeypatch.setattr(sys, "argv", ["webgpu_placement.py", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        webgpu_placement.main()
    return ended.value.code


@pytest.fixture
def with_webgpu(monkeypatch):
    """onnxruntime claims WebGPU, as onnxruntime-webgpu does."""
    names = [webgpu_placement.WEBGPU, webgpu_placement.CPU]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_missing_or_broken_file_is_named(monkeypatch, capsys, with_webgpu, tmp_path):
    assert call(monkeypatch, tmp_path / "no.onnx") == 2
    broken = tmp_path / "broken.onnx"
    broken.write_text("text")
    assert call(monkeypatch, broken) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "no.onnx is no file" in first
    assert "broken.onnx does not open: [ONNXRuntimeError]" in second


def test_a_missing_adapter_names_a_driver(monkeypatch, capsys, with_webgpu, file):
    """onnxruntime 1.27 prints the reason, and takes the CPU."""
    make = onnxruntime.InferenceSession

    def session(path, options, providers):
        print("EP Error ... Failed to get a WebGPU adapter: No supported adapters")
        return make(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    assert call(monkeypatch, file) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert "finds no adapter" in line and "mesa-vulkan-drivers" in line
    assert not printed.out


@pytest.mark.parametrize("device, status", [("CPU", 0), ("WebGpu", 1)])
def test_nodes_are_counted_by_place(monkeypatch, capsys, file, device, status):
    """All nodes run on the CPU, as itself or as a stand-in for WebGPU."""
    monkeypatch.setattr(webgpu_placement, "check_adapter", lambda files: None)
    monkeypatch.setattr(webgpu_placement, "WEBGPU", f"{device}ExecutionProvider")
    make = webgpu_placement.open_session

    def open_on_cpu(path, providers, profile=None):
        return make(path, ["CPUExecutionProvider"], profile)

    monkeypatch.setattr(webgpu_placement, "open_session", open_on_cpu)
    assert call(monkeypatch, file, "--json") == status
    row = json.loads(capsys.readouterr().out)
    counts = row["counts"]
    elsewhere, on_provider = counts["CPU"], counts["WebGPU"]
    if device == "CPU":
        elsewhere, on_provider = on_provider, elsewhere
    assert elsewhere > 20
    assert (on_provider, counts["copies"], row["difference"]) == (0, 0, 0)
    assert sum(count for *_, count in row["elsewhere"]) == counts["CPU"]
    assert call(monkeypatch, file) == status
    lines = capsys.readouterr().out.splitlines()
    assert f"WebGPU {counts['WebGPU']}, CPU {counts['CPU']}, copies 0" in lines[0]
    assert any("Softmax (CPU) of float" in line for line in lines) == (status == 1)
