"""int8 graphs by onnxruntime."""

import numpy as np
import pytest

from experiments import quantize
from imagepiece_jax.inference import onnx_model
from tests.models import tiny


def test_a_graph_whose_weights_are_in_another_file_is_quantized(tmp_path, monkeypatch):
    runtime = pytest.importorskip("onnxruntime")
    vit = tiny.pretrained(depth=1)
    images = np.asarray(tiny.images(4))
    monkeypatch.setattr(onnx_model, "LARGEST", 10_000)
    path = tmp_path / quantize.FILES[quantize.FLOAT]
    assert onnx_model.write_onnx(path, onnx_model.onnx_model(vit)).exists()
    quantize.quantize_onnx(tmp_path, images[:, None])
    wanted = runtime.InferenceSession(tmp_path / path.name).run(
        None, {"images": images}
    )[0]
    found = runtime.InferenceSession(
        tmp_path / quantize.FILES["onnxruntime", "int8"]
    ).run(None, {"images": images})[0]
    assert 0 < np.abs(found - wanted).max() < 0.2 * np.ptp(wanted)
