import numpy as np
import pytest

from imagepiece_jax.exporters import litert_format
from imagepiece_jax.exporters.program_interface import ProgramInterface
from tests.helpers import onnx_runs, tiny_vit
from tests.helpers.rounding import assert_close
from tools import onnx_speed


@pytest.mark.parametrize("library", ["onnxruntime", "openvino", "litert"])
def test_calls_compute_the_models_logits(library):
    pytest.importorskip("onnx")
    pytest.importorskip({"litert": "litert_converter"}.get(library, library))
    vit = tiny_vit.pretrained("tome:r=4")
    images = onnx_speed.random_images(2, vit.image_size)
    if library == "litert":
        graph = litert_format.build_graph(ProgramInterface(vit, batch_size=2))
    else:
        graph = onnx_runs.build_onnx(vit, batch_size=2).SerializeToString()
    make_call = getattr(onnx_speed, f"{library}_call")
    expected = vit.model.apply(vit.variables, images).logits
    logits = np.reshape(make_call(graph, images)(0), expected.shape)
    assert_close(logits, expected)
