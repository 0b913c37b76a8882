import collections

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.exporters import onnx_format
from tests.helpers import tiny_vit
from tests.helpers.small_photographs import draw

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def run_logits(path, images):
    session = onnxruntime.InferenceSession(path)
    return session.run(["logits"], {"images": images})[0]


@pytest.mark.parametrize("large", [False, True])
def test_products_with_weights_are_int8_and_others_stay(tmp_path, monkeypatch, large):
    vit = tiny_vit.pretrained("tome:r=3", depth=2)
    pixels = draw(44)
    images = np.asarray(normalize(pixels[:4], vit.config.mean, vit.config.std))
    if large:  # as if the float32 graph were above 2 GB
        monkeypatch.setattr(onnx_format, "MAX_PROTOBUF_BYTES", 60_000)
    options = {"dtype": "int8", "images": pixels[4:], "batch_size": 4}
    file = imagepiece_jax.export(vit, tmp_path / "m.onnx", **options)
    graph = onnx.load(file).graph
    tensors = map(onnx.numpy_helper.to_array, graph.initializer)
    weights = [each for each in tensors if each.ndim > 1 and each.dtype == np.int8]
    assert len(weights) == 6 * 2 + 2  # stem and head
    for weight in weights:
        assert 32 < np.abs(weight.astype(int)).max() <= 64  # 2 * 64 * 255 < 2**15
    # Each product has a quantized output, and an input that others may share.
    nodes = collections.Counter(node.op_type for node in graph.node)
    assert 6 * 2 + 2 < nodes["QuantizeLinear"] <= 2 * (6 * 2 + 2)
    expected = np.asarray(tiny_vit.jit(vit.model.apply)(vit.variables, images).logits)
    logits = run_logits(file, images)
    assert 0 < np.abs(logits - expected).mean() < 0.1 * expected.std()


def test_products_for_decisions_stay_float32():
    """By hand: a score, its comparison, the chosen values, and attention."""
    node = onnx.helper.make_node
    weights = []
    for name in "wuv":
        weights.append(onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), name))
    graph = onnx.helper.make_graph(
        [
            node("MatMul", ["x", "w"], ["y"], "layer"),
            node("MatMul", ["y", "u"], ["score"], "selector"),
            node("TopK", ["score", "k"], ["best", "order"], "TopK"),
            node("MatMul", ["y", "v"], ["vote"], "voter"),
            node("Greater", ["vote", "zero"], ["keep"], "Greater"),
            node("MatMul", ["y", "y"], ["attention"], "tokens"),
            node("GatherElements", ["attention", "order"], ["kept"], "Gather"),
            node("Where", ["keep", "kept", "y"], ["out"], "Where"),
        ],
        "hand",
        inputs=[],
        outputs=[onnx.helper.make_tensor_value_info("out", 1, None)],
        initializer=weights,
    )
    assert onnx_format.list_weight_products(graph) == ["layer"]


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_every_type_runs_in_both_runtimes(tmp_path, dtype, batch_size):
    """OpenVINO 2026.4 refuses int8 matrices of batch * tokens rows, for an open batch.

    Only those with more tokens than columns.
    """
    openvino = pytest.importorskip("openvino")
    vit = tiny_vit.pretrained("tome:r=3", depth=2, embed_dim=24)
    pixels = draw(44)
    options = {"dtype": dtype, "batch_size": batch_size, "images": pixels[4:]}
    file = imagepiece_jax.export(vit, tmp_path / "m.onnx", **options)
    images = np.asarray(normalize(pixels[:2], vit.config.mean, vit.config.std))
    assert vit.model.plan[0].attn_tokens > vit.config.embed_dim
    expected = np.asarray(vit.model.apply(vit.variables, images).logits)
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(file, "CPU", hints)
    error = {"float32": 1e-4, "float16": 0.02, "int8": 0.15}[dtype]
    for logits in (run_logits(file, images), compiled([images])["logits"]):
        assert np.abs(logits - expected).mean() < error * expected.std()
