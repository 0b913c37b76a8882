"""The tool's lines and status; `test_runtime_operators` runs it on a GPU."""

import json
import sys

import pytest

from tests.helpers import onnx_runs, tiny_vit

onnx = pytest.importorskip("onnx")
webgpu_placement = pytest.importorskip("tools.webgpu_placement")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(onnx_runs.build_onnx(tiny_vit.pretrained(depth=1)), path)
    return path


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["webgpu_placement.py", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        webgpu_placement.main()
    return ended.value.code


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_missing_adapter_names_a_driver(monkeypatch, capsys, file):
    assert call(monkeypatch, file) == 2
    assert "mesa-vulkan-drivers" in capsys.readouterr().err


@pytest.mark.parametrize("place, status", [("CPU", 0), ("WebGPU", 1)])
def test_nodes_are_counted_by_place(monkeypatch, capsys, file, place, status):
    """All nodes run on the CPU, as itself or as a stand-in for WebGPU."""
    make = webgpu_placement.open_session
    cpu = webgpu_placement.CPU

    def open_on_cpu(path, providers, profile=None):
        session = make(path, [cpu], profile)
        if place == "WebGPU" and profile is None:
            session.get_providers = lambda: [webgpu_placement.WEBGPU]
        return session

    monkeypatch.setattr(webgpu_placement, "open_session", open_on_cpu)
    if place == "CPU":
        monkeypatch.setattr(webgpu_placement, "WEBGPU", cpu)
    assert call(monkeypatch, file) == status
    row = json.loads(capsys.readouterr().out)
    counts = row["counts"]
    # In the tool's eyes the CPU is WebGPU, or it is not.
    used, unused = ("WebGPU", "CPU") if place == "CPU" else ("CPU", "WebGPU")
    assert counts[used] > 20
    assert (counts[unused], counts["copies"], row["difference"]) == (0, 0, 0)
    assert sum(count for *_, count in row["elsewhere"]) == counts["CPU"]
    operators = [kind[:3] for kind in row["elsewhere"]]
    assert (["Softmax", "CPU", "float"] in operators) == (status == 1)
