"""int8 graphs: products with weights, quantized by onnxruntime."""

import pathlib
import tempfile
from typing import TYPE_CHECKING

import numpy as np

from imagepiece_jax.export.onnx_program import OnnxProgram
from imagepiece_jax.export.program_facts import files_of

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

# Products of tokens, norms, softmax, and scores of reductions stay float32: they have
# few of the multiply-adds, and their rounding would change which tokens leave.
QUANTIZED = ["Conv", "Gemm", "MatMul"]
# Operators that decide by numbers, and whose outputs are no numbers of the model.
DECISIONS = {"ArgMax", "ArgMin", "Equal", "Not"}
DECISIONS |= {"Greater", "GreaterOrEqual", "Less", "LessOrEqual"}


def quantized(program: OnnxProgram, pixels: np.ndarray) -> "ModelProto":
    """Quantize a float32 file to int8, with a scale per channel of its weights.

    pixels: images that give the ranges of activations, uint8 [images, H, W, 3]
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    path = program.source.path
    model = onnx.load(path)
    add_pre_process_metadata(model)  # all shapes are known: nothing to preprocess
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "int8.onnx")
        quantization.quantize_static(
            model,
            file,
            Calibration(program, pixels),
            op_types_to_quantize=QUANTIZED,
            nodes_to_exclude=deciding_nodes(model.graph),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=len(files_of(path)) > 1,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(file)


class Calibration:
    """Images as onnxruntime reads them to calibrate."""

    def __init__(self, program: OnnxProgram, pixels: np.ndarray):
        self.name = program.input_name
        self.parts = program.parts(pixels, 1)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch by the input's name; None at the end."""
        images = next(self.parts, None)
        return None if images is None else {self.name: images}


def deciding_nodes(graph: "GraphProto") -> list[str]:
    """Names of nodes that only decide which tokens leave, such as a selector's."""
    live = {output.name for output in graph.output}
    names = []
    for node in reversed(graph.node):
        outputs = node.output
        if node.op_type == "TopK":
            outputs = node.output[:1]  # the values; the indices are decisions
        if node.op_type not in DECISIONS and live & {*outputs}:
            live |= {*node.input}
        else:
            names.append(node.name)
    return names
