"""ONNX as a format of `models.program.FORMAT_MODULES`: every format has these names."""

from imagepiece_jax.exporters.onnx_model import (
    ONNX_OPSET,
    build_onnx_model,
    remove_earlier_weights,
    write_onnx,
)
from imagepiece_jax.exporters.onnx_program import open_onnx
from imagepiece_jax.exporters.quantize import quantize_onnx

__all__ = ["remove_earlier_weights"]

build_graph = build_onnx_model
write_graph = write_onnx
quantize_graph = quantize_onnx
open_file = open_onnx
FORMAT_TITLE = "an ONNX file"
FORMAT_VERSION = f"ONNX opset {ONNX_OPSET}"
FORMAT_FACTS = {"opset": ONNX_OPSET}  # of every file's JSON
WRITER_MODULE = "onnx"  # the package that writes a file, and the one that runs it
RUNTIME_MODULE = "onnxruntime"
