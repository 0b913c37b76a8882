"""ONNX as a format of `models.program.FORMAT_MODULES`: every format has these names."""

from imagepiece_jax.exporters.onnx_model import (
    OPSET,
    onnx_model,
    remove_weights,
    write_onnx,
)
from imagepiece_jax.exporters.onnx_program import open_file
from imagepiece_jax.exporters.quantize import quantized

__all__ = ["open_file", "remove_weights"]

build_graph = onnx_model
write_graph = write_onnx
quantize_graph = quantized
TITLE = "an ONNX file"
VERSION = f"ONNX opset {OPSET}"
FACTS = {"opset": OPSET}  # of every file's JSON
WRITER = "onnx"  # modules
RUNTIME = "onnxruntime"
