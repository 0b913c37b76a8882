"""ONNX as a format of `models.program.FORMATS`: these names are a format's."""

from imagepiece_jax.exporters.onnx_model import OPSET as OPSET
from imagepiece_jax.exporters.onnx_model import onnx_model as build_graph
from imagepiece_jax.exporters.onnx_model import remove_weights as remove_weights
from imagepiece_jax.exporters.onnx_model import write_onnx as write_graph
from imagepiece_jax.exporters.onnx_program import open_file as open_file
from imagepiece_jax.exporters.quantize import quantized as quantize_graph

__all__ = ["OPSET", "build_graph", "open_file", "quantize_graph", "remove_weights"]
__all__ += ["write_graph"]
TITLE = "an ONNX file"
WRITER = "onnx"
RUNTIME = "onnxruntime"
