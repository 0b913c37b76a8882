"""Nodes of an ONNX graph that leave WebGPU, by WebGPU's operators.

The operators are onnxruntime-webgpu 1.27's, by tests/tools/test_runtime_operators.py.
"""

import collections

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
# Operands that count sides or axes: int64 by ONNX, read by the CPU.
COUNTS = dict.fromkeys(("CumSum", "Expand", "Gather", "Pad", "Reshape", "Split"), {1})
COUNTS |= dict.fromkeys((name for name in NUMBERS if name.startswith("Reduce")), {1})
COUNTS |= {"Slice": {1, 2, 3, 4}}


class TypedGraph:
    """A graph's nodes, with the types and constants of their values."""

    def __init__(self, model):
        from onnx import helper, numpy_helper, shape_inference

        graph = shape_inference.infer_shapes(model, strict_mode=True).graph
        self.nodes = graph.node
        self.constants = {}
        for tensor in graph.initializer:
            self.constants[tensor.name] = numpy_helper.to_array(tensor)
        self.dtypes = {name: array.dtype for name, array in self.constants.items()}
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            self.dtypes[value.name] = helper.tensor_dtype_to_np_dtype(tensor.elem_type)

    def kinds(self, names):
        """The values' kinds: b boolean, f number, i or u integer."""
        return "".join(self.dtypes[name].kind for name in names)


def count_leaving_nodes(model):
    """{(operator, kinds of its operands): nodes that WebGPU leaves to the CPU}."""
    graph = TypedGraph(model)
    nodes = collections.Counter()
    for node in graph.nodes:
        if not runs_on_webgpu(node, graph):
            nodes[node.op_type, graph.kinds(filter(None, node.input))] += 1
    return nodes


def runs_on_webgpu(node, graph):
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
