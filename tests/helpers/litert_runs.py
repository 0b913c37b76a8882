"""LiteRT flatbuffers: what is in them, and their outputs."""

import collections

import numpy as np
import pytest

interpreters = pytest.importorskip("ai_edge_litert.interpreter")
schema = pytest.importorskip("litert_converter.schema_py_generated")
OPERATOR_NAMES = {
    code: name
    for name, code in vars(schema.BuiltinOperator).items()
    if not name.startswith("_")
}
# LiteRT's GPU delegates take no operator of these.
FORBIDDEN_OPERATORS = {"GATHER_ND", "TOPK_V2", "SCATTER_ND", "WHILE", "IF", "CUSTOM"}
FORBIDDEN_OPERATORS |= {"STABLEHLO_COMPOSITE", "STABLEHLO_SORT", "STABLEHLO_SCATTER"}


def run_litert(flatbuffer, images):
    """Outputs of a flatbuffer on one thread of the CPU."""
    interpreter = interpreters.Interpreter(model_content=flatbuffer, num_threads=1)
    interpreter.allocate_tensors()
    (entry,) = interpreter.get_input_details()
    interpreter.set_tensor(entry["index"], np.asarray(images))
    interpreter.invoke()
    return [
        interpreter.get_tensor(x["index"]) for x in interpreter.get_output_details()
    ]


def count_operators(flatbuffer):
    """Operators by name; a phone's GPU must take all operators."""
    root = schema.Model.GetRootAsModel(flatbuffer, 0)
    model = schema.ModelT.InitFromObj(root)
    (graph,) = model.subgraphs
    shapes = [tensor.shape for tensor in graph.tensors if tensor.shape is not None]
    assert max(map(len, shapes)) <= 4  # as GPU delegates ask
    codes = [model.operatorCodes[operator.opcodeIndex] for operator in graph.operators]
    names = [OPERATOR_NAMES[code.builtinCode] for code in codes]
    assert not FORBIDDEN_OPERATORS & {*names}
    return collections.Counter(names)
