"""int8 graphs: products with weights, quantized by onnxruntime."""

import pathlib
import tempfile
import types
from typing import TYPE_CHECKING, cast

import numpy as np

from imagepiece_jax.exporters.file_program import FileProgram
from imagepiece_jax.exporters.program_facts import program_files

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

# Products of tokens, norms, softmax, and scores of reductions stay float32: they have
# few of the multiply-adds, and their rounding would change which tokens leave.
QUANTIZED_OPERATORS = ["Conv", "Gemm", "MatMul"]
# Operators that decide by numbers, and whose outputs are no numbers of the model.
DECISION_OPERATORS = {"ArgMax", "ArgMin", "Equal", "Not"}
DECISION_OPERATORS |= {"Greater", "GreaterOrEqual", "Less", "LessOrEqual"}


def quantize_onnx(program: FileProgram, pixels: np.ndarray) -> "ModelProto":
    """Quantize a float32 file to int8, with a scale per channel of its weights.

    pixels: images that give the ranges of activations, uint8 [images, H, W, 3]
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    path = program.path
    model = onnx.load(path)
    batches = program.prepared_batches(pixels, 1)
    inputs_by_name = ({program.input_name: images} for images in batches)
    batch_reader = types.SimpleNamespace(get_next=lambda: next(inputs_by_name, None))
    data_reader = cast(quantization.CalibrationDataReader, batch_reader)
    add_pre_process_metadata(model)  # all shapes are known: nothing to preprocess
    with tempfile.TemporaryDirectory() as folder:
        int8_file = pathlib.Path(folder, "int8.onnx")
        quantization.quantize_static(
            model,
            int8_file,
            data_reader,
            op_types_to_quantize=QUANTIZED_OPERATORS,
            nodes_to_quantize=list_weight_products(model.graph),
            per_channel=True,
            # CPUs without VNNI add two products in 16 bits, where weights of 8 bits
            # overflow. Errors of DeiT-Ti's logits (of their deviation): 24 % there and
            # 17 % with VNNI; with weights of 7 bits 18 % on both.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=len(program_files(path)) > 1,
        )
        return onnx.load(int8_file)


def list_weight_products(graph: "GraphProto") -> list[str]:
    """Names of the products with weights on which the outputs' numbers depend.

    Others only decide which tokens leave, such as those of a selector.
    """
    weight_names = {tensor.name for tensor in graph.initializer}
    live_names = {output.name for output in graph.output}
    product_names = []
    for node in reversed(graph.node):
        output_names = node.output
        if node.op_type == "TopK":
            output_names = node.output[:1]  # the values; the indices are a decision
        if node.op_type in DECISION_OPERATORS or not live_names & {*output_names}:
            continue
        live_names |= {*node.input}
        if node.op_type in QUANTIZED_OPERATORS and node.input[1] in weight_names:
            product_names.append(node.name)
    return product_names
