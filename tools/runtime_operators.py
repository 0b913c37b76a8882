"""Nodes of an ONNX graph that leave a runtime's device, by the runtime's operators.

| runtime | table |
|---|---|
| WebGPU | what onnxruntime-webgpu 1.27 runs, by tests/tools/test_runtime_operators.py |
| CoreML | published in the package of onnxruntime, per format of CoreML's models |
| XNNPACK | onnxruntime's page of execution-providers/Xnnpack-ExecutionProvider, 2025 |
| TensorRT | docs/operators.md of onnx-tensorrt, TensorRT 10.15, 2026-02-02 |

A published table says less than a runtime checks: shapes, and opsets of operators.
"""

import collections
import functools
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Operators of float32 and float16. WebGPU has no int64, and moves no booleans.
NUMBERS = """
Abs Add Ceil Clip Concat Conv Cos CumSum Div Equal Erf Exp Floor Gather Gelu Greater
GreaterOrEqual Identity LayerNormalization Less LessOrEqual Log MatMul Mul Neg Pad Pow
Reciprocal ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare Relu
Reshape Sigmoid Sin Slice Softmax Split Sqrt Sub Tanh Transpose
""".split()
# Of other operators, the operands' types: b boolean, f number, i and u integers.
TYPES = {"And": ["bb"], "Cast": ["b", "f"], "Not": ["b"], "Where": ["bff"]}
TYPES |= {"DequantizeLinear": ["ifi", "ufu"]}  # QuantizeLinear runs on the CPU
TYPES |= {"Expand": ["b", "f"]}
# Operands that count sides or axes, int64 by ONNX. The CPU reads them.
COUNTS = dict.fromkeys(("CumSum", "Expand", "Gather", "Pad", "Reshape", "Split"), {1})
COUNTS |= dict.fromkeys((name for name in NUMBERS if name.startswith("Reduce")), {1})
COUNTS |= {"Slice": {1, 2, 3, 4}}


class TypedGraph:
    """A graph's nodes, with the types, ranks and constants of their values."""

    def __init__(self, model: "ModelProto"):
        from onnx import helper, numpy_helper, shape_inference

        graph = shape_inference.infer_shapes(model, strict_mode=True).graph
        self.nodes = graph.node
        self.constants = {}
        for tensor in graph.initializer:
            self.constants[tensor.name] = numpy_helper.to_array(tensor)
        self.dtypes = {name: array.dtype for name, array in self.constants.items()}
        self.ranks = {name: array.ndim for name, array in self.constants.items()}
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            self.dtypes[value.name] = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            self.ranks[value.name] = len(tensor.shape.dim)

    def kinds(self, names) -> str:
        """The values' kinds: b boolean, f number, i or u integer."""
        return "".join(self.dtypes[name].kind for name in names)


def elsewhere(model: "ModelProto", runtime: str) -> collections.Counter:
    """Count the nodes that a runtime (a key of RUNTIMES) leaves to the CPU.

    Returns {(operator, kinds of its operands): nodes}.
    """
    graph = TypedGraph(model)
    runs = RUNTIMES[runtime]
    nodes = collections.Counter()
    for node in graph.nodes:
        if not runs(node, graph):
            nodes[node.op_type, graph.kinds(filter(None, node.input))] += 1
    return nodes


def runs_on_webgpu(node: "NodeProto", graph: TypedGraph) -> bool:
    operands = []
    for place, name in enumerate(node.input):
        if place not in COUNTS.get(node.op_type, ()):
            operands.append(name)
        elif graph.kinds([name]) != "i" or name not in graph.constants:
            return False
    kinds = graph.kinds(operands)
    if not {*graph.kinds(node.output)} <= {*"bf"}:
        return False
    if node.op_type in NUMBERS:
        return {*kinds} == {"f"}
    return kinds in TYPES.get(node.op_type, ())


# Restrictions of published tables


def anything(node, graph):
    return True


def constant(*places):
    """Operands at these places are constants, if there are any."""

    def holds(node, graph):
        given = [node.input[place] for place in places if place < len(node.input)]
        return {*given} <= graph.constants.keys()

    return holds


def ranks(*allowed):
    """The first operand has one of these ranks."""
    return lambda node, graph: graph.ranks[node.input[0]] in allowed


def kinds(wanted):
    """All operands have the kinds `wanted`."""
    return lambda node, graph: graph.kinds(node.input) == wanted


def both(*rules):
    return lambda node, graph: all(rule(node, graph) for rule in rules)


def pads_the_last_two(node, graph):
    is_constant = constant(1, 2)(node, graph)
    if not is_constant:
        return False
    pads = graph.constants[node.input[1]].reshape(2, -1)
    return not pads[:, :-2].any()


def is_symmetric(node, graph):
    """The quantization's zero point is 0."""
    zero = graph.constants.get(node.input[2])
    return zero is not None and not np.any(zero)


def along_the_last_axis(node, graph):
    (axis,) = (each.i for each in node.attribute if each.name == "axis")
    return axis in (-1, graph.ranks[node.input[0]] - 1)


def without(attribute):
    return lambda node, graph: attribute not in {a.name for a in node.attribute}


CONSTANT_B = constant(1)
CONSTANT_SLICE = constant(1, 2, 3, 4)
# The notes in CoreML's tables about operators of our graphs.
NOTES = {
    "": anything,
    "Attribute `end` is not supported.": without("end"),
    "Attribute `start` with non-default value is not supported.": without("start"),
    "Both inputs must be bool.": kinds("bb"),
    "Bias if provided must be constant.": constant(2),
    "Input B must be constant.": CONSTANT_B,
    "Input B should be constant.": CONSTANT_B,
    "Input `indices` with scalar value is not supported.": lambda node, graph: (
        graph.ranks[node.input[1]] > 0
    ),
    "Only 1D/2D Conv is supported.": ranks(3, 4),
    "Only constant mode and last two dim padding is supported.": pads_the_last_two,
    "Input pads and constant_value should be constant.": constant(1, 2),
    "If provided, axes should be constant.": constant(3),
    "Only support for transA == 0, alpha == 1.0 and beta == 1.0 is currently "
    "implemented.": anything,  # of Gemm: MatMul has no such attributes
    "Only supports cases when both inputs are fp32.": lambda node, graph: (
        {graph.dtypes[name] for name in node.input} == {np.dtype(np.float32)}
    ),
    "this ask for a `epislon` (default 1e-4) where onnx don't provide": anything,
    "starts/ends/axes/steps must be constant initializers.": CONSTANT_SLICE,
    "Inputs `starts`, `ends`, `axes`, and `steps` should be constant. Empty slice is "
    "not supported.": CONSTANT_SLICE,
    "If provided, `splits` must be constant.": constant(1),
    "Weights and bias should be constant.": constant(1, 2),
    "`X`/`Y` branches must be float or float16.": kinds("bff"),
    "batch_dims must be 0.": without("batch_dims"),
}
XNNPACK = {
    "AveragePool": ranks(4),
    "Conv": both(ranks(4), constant(1, 2)),
    "ConvTranspose": both(ranks(4), constant(1, 2)),
    "Gemm": ranks(2),
    "MatMul": ranks(2),
    "MaxPool": ranks(4),
    "Resize": ranks(2, 4),
    "Softmax": along_the_last_axis,
}
TENSORRT = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
BatchNormalization BlackmanWindow Cast CastLike Ceil Celu Clip Concat Constant
ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace
DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor
Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
Greater GreaterOrEqual GridSample GroupNormalization GRU HammingWindow HannWindow
HardSigmoid HardSwish Hardmax Identity If ImageScaler InstanceNormalization IsInf IsNaN
LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM
LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod
Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad ParametricSoftplus Pow PRelu
QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range
Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence
RMSNormalization RNN RoiAlign RotaryEmbedding Round STFT ScaledTanh Scan Scatter
ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh TensorScatter
ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
""".split()
TENSORRT = dict.fromkeys(TENSORRT, anything)
TENSORRT |= {name: constant(1) for name in TENSORRT if name.startswith("Reduce")}
TENSORRT |= {"CumSum": constant(1)}
TENSORRT |= {"DequantizeLinear": is_symmetric, "QuantizeLinear": is_symmetric}


@functools.cache
def coreml_operators(form: str) -> Mapping[str, list[str]]:
    """CoreML's operators, in lower case, with their notes.

    form: "mlprogram" or "neuralnetwork", the format of CoreML's model
    """
    import onnxruntime

    folder = pathlib.Path(onnxruntime.__file__).parent / "tools" / "mobile_helpers"
    text = (folder / f"coreml_supported_{form}_ops.md").read_text()
    rows = re.findall(r"^\|ai\.onnx[:.](\w+)\|(.*)\|$", text, re.MULTILINE)
    return {name.lower(): note.split("<br/>") for name, note in rows}


def runs_on_coreml(form: str) -> Callable[["NodeProto", TypedGraph], bool]:
    def runs(node, graph):
        notes = coreml_operators(form).get(node.op_type.lower())
        if notes is None:
            return False
        return all(NOTES[note](node, graph) for note in notes)

    return runs


def runs_by(table) -> Callable[["NodeProto", TypedGraph], bool]:
    """Run what a table {operator: rule} has."""
    return lambda node, graph: (
        node.op_type in table and table[node.op_type](node, graph)
    )


# {runtime: whether it runs a node of a TypedGraph on its device}
RUNTIMES = {
    "WebGPU": runs_on_webgpu,
    "CoreML, ML program": runs_on_coreml("mlprogram"),
    "CoreML, neural network": runs_on_coreml("neuralnetwork"),
    "XNNPACK": runs_by(XNNPACK),
    "TensorRT": runs_by(TENSORRT),
}
