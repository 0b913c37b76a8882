"""Calls of a graph that are timed: each runtime computes the model's outputs."""

import numpy as np
import pytest

from imagepiece_jax.exporters.onnx_model import build_onnx_model
from tests.helpers import tiny_vit
from tests.helpers.rounding import assert_close
from tools import onnx_speed


@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
def test_a_call_computes_the_logits_of_the_model(library):
    pytest.importorskip("onnx")
    pytest.importorskip(library)
    vit = tiny_vit.pretrained("tome:r=4")
    images = onnx_speed.random_images(2, vit.image_size)
    graph = build_onnx_model(vit, batch_size=2, gathers=True).SerializeToString()
    make_call = getattr(onnx_speed, f"{library}_call")
    wanted = vit.model.apply(vit.variables, images).logits
    logits = np.reshape(make_call(graph, images)(0), wanted.shape)
    assert_close(logits, wanted)
