"""Tools without a file of tests."""

import importlib
import types

import pytest

from tests.command import call
from tools import onnx_speed


@pytest.mark.parametrize("name", ["public_models", "fixtures"])
def test_tools_that_read_other_libraries_start(name):
    pytest.importorskip("timm")
    importlib.import_module(f"tools.{name}")


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
    words = [f"--times={tmp_path / 'times'}", "--size=deit_ti", "--batch-sizes=2"]
    call(onnx_speed.main, *words).ok()
    assert onnx_shapes == [(2, 224, 224, 3)]
