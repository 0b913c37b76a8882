"""ONNX as a format of `models.program.FORMAT_MODULES`: every format has these names."""

import functools
import hashlib
import pathlib
import tempfile
import types
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from imagepiece_jax import kernels
from imagepiece_jax.common import extras, nodes
from imagepiece_jax.common.device import available_cores
from imagepiece_jax.common.files import AnyPath
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters import file_program, onnx_graph
from imagepiece_jax.exporters.onnx_primitives import add_equations
from imagepiece_jax.exporters.program_facts import output_dtype, program_files
from imagepiece_jax.exporters.program_interface import ProgramInterface
from imagepiece_jax.inference import optimize

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

FORMAT_TITLE = "an ONNX file"
FORMAT_VERSION = f"ONNX opset {onnx_graph.ONNX_OPSET}"
FORMAT_FACTS = {"opset": onnx_graph.ONNX_OPSET}  # of every file's JSON
FORMAT_DTYPES = ("float32", "float16", "int8")
HAS_OPEN_BATCH = True  # whether a program may take any number of images
WRITER_MODULE = "onnx"  # the package that writes a file, and the one that runs it
RUNTIME_MODULE = RUNTIME_TITLE = "onnxruntime"
RUN_LINES = """\
import onnxruntime
session = onnxruntime.InferenceSession("{file}")
outputs = session.run(None, {{"{images}": images}})"""
PROGRAM_KIND = "ONNX file"
MAX_PROTOBUF_BYTES = 2**31 - 1  # bytes of the largest file in protobuf, ONNX's format
ENTRY_OVERHEAD_BYTES = 64  # upper bound of the extra bytes per node or tensor
MIN_EXTERNAL_BYTES = 1024  # smaller tensors stay in the graph: runtimes read shapes
NAME_DIGEST_DIGITS = 16  # digest digits in a file's name
# Products of tokens, norms, softmax, and scores of reductions stay float32: they have
# few of the multiply-adds, and their rounding would change which tokens leave.
QUANTIZED_OPERATORS = ["Conv", "Gemm", "MatMul"]
# Operators that decide by numbers, and whose outputs are no numbers of the model.
DECISION_OPERATORS = {"Equal", "Greater", "GreaterOrEqual"}
DECISION_OPERATORS |= {"Less", "LessOrEqual", "Not"}


def build_graph(interface: ProgramInterface) -> "ModelProto":
    """Build a model's ONNX graph, from images to float32 outputs.

    The graph has opset `ONNX_OPSET`, and no Scatter, Loop, If or NonZero. All shapes
    are fixed except the batch. Weights and layers have the model's dtype. In a 16-bit
    dtype norms, softmax, the head, and scores and order of reductions stay float32.
    """
    pretrained = interface.pretrained
    model, variables = optimize.fold_and_cast(pretrained.model, pretrained.variables)
    input_spec = interface.input_spec
    with nodes.marked_functions(), kernels.reference_forms():
        forward = interface.make_forward_function(model)
        jaxpr = jax.make_jaxpr(forward)(variables, input_spec)
    input_dtype = np.dtype(input_spec.dtype)
    images = onnx_graph.Value(input_spec.shape, input_dtype, interface.input_name)
    graph = onnx_graph.Graph(images)
    # Weights are named first: initializers have the parameters' names ("head.bias").
    weights = []
    for param_path, param in jax.tree_util.tree_leaves_with_path(variables["params"]):
        weights.append(onnx_graph.Value.constant(param))
        name = jax.tree_util.keystr(param_path, simple=True, separator=".")
        graph.name_value(weights[-1], name)
    try:
        output_values = add_equations(graph, jaxpr, [*weights, images])
    except TypeError as error:
        if "PRNGKey" not in str(error):  # keys of jax.random have no type in NumPy
            raise
        raise InputError(
            f"reduction is {pretrained.typed_reduction}, which computes with "
            "jax.random: it has no graph; draw constants by NumPy"
        ) from error
    output_of_name = {}
    for name, output_value, aval in zip(
        interface.output_names, output_values, jaxpr.out_avals, strict=True
    ):
        value = graph.cast(output_value, output_dtype(aval.dtype))
        value = graph.expand(value, aval.shape)
        if value.array is not None:  # a graph's output is a node's
            value = graph.add_node("Identity", [value], aval.shape, value.dtype)
        output_of_name[name] = value
    return graph.make_model(output_of_name)


def write_graph(path: AnyPath, model: "ModelProto") -> pathlib.Path | None:
    """Write a model to a file, or to two files if it exceeds protobuf's 2 GB.

    The second file, PATH.DIGEST.data, holds the large weights, which leave `model`.

    Returns the second file's path, or None.
    """
    import onnx

    path = pathlib.Path(path)
    weights = model.graph.initializer
    num_bytes = ENTRY_OVERHEAD_BYTES * (len(weights) + len(model.graph.node))
    num_bytes += sum(node.ByteSize() for node in model.graph.node)
    num_bytes += sum(len(tensor.raw_data) + len(tensor.name) for tensor in weights)
    if num_bytes <= MAX_PROTOBUF_BYTES:
        path.write_bytes(model.SerializeToString())
        return None
    digest = hashlib.sha256()
    for tensor in weights:
        if len(tensor.raw_data) >= MIN_EXTERNAL_BYTES:
            digest.update(tensor.raw_data)
    short_digest = digest.hexdigest()[:NAME_DIGEST_DIGITS]
    weights_file = path.with_name(f"{path.name}.{short_digest}.data")
    weights_file.unlink(missing_ok=True)  # onnx would append to it
    options = {"location": weights_file.name, "size_threshold": MIN_EXTERNAL_BYTES}
    onnx.save_model(model, path, save_as_external_data=True, **options)
    return weights_file


def quantize_graph(
    program: file_program.FileProgram, pixels: np.ndarray
) -> "ModelProto":
    """Quantize a float32 file to int8, with a scale per channel of its weights.

    pixels: images that give the ranges of activations, uint8 [images, H, W, 3]
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    path = program.path
    model = onnx.load(path)
    batches = program.prepared_batches(pixels, 1)  # 1: an image at a time
    input_name = program.facts["input"]["name"]
    inputs_of_calls = ({input_name: images} for images in batches)
    # The reader's one method; None: no more images.
    get_next = functools.partial(next, inputs_of_calls, None)
    data_reader: Any = types.SimpleNamespace(get_next=get_next)
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
    for node in reversed(graph.node):  # its readers come after it
        output_names = node.output
        if node.op_type == "TopK":
            output_names = node.output[:1]  # the values; the indices are a decision
        if node.op_type in DECISION_OPERATORS or not live_names & {*output_names}:
            continue
        live_names |= {*node.input}
        # The second input is the weight.
        if node.op_type in QUANTIZED_OPERATORS and node.input[1] in weight_names:
            product_names.append(node.name)
    return product_names


def open_file(path: AnyPath, threads: int | None = None) -> file_program.FileProgram:
    """Open an .onnx file, as `open_program` does."""
    extras.check_installed(FORMAT_TITLE, RUNTIME_MODULE)

    def open_runtime(path, facts):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or available_cores()
        providers = onnxruntime.get_available_providers()
        if threads is not None:  # of the CPU: GPUs have no number of threads
            providers = ["CPUExecutionProvider"]
        try:
            session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # onnxruntime's errors share no class
            reason = str(error).partition("\n")[0]
            raise InputError(f"{PROGRAM_KIND} {path}: {reason}") from error
        input_name = facts["input"]["name"]
        return lambda images, output_names: functools.partial(
            session.run, output_names, {input_name: images}
        )

    return file_program.open_described(path, open_runtime)
