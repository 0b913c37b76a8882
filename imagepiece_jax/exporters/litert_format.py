"""LiteRT (.tflite) as a format of `models.program.FORMAT_MODULES`, for phones.

JAX exports StableHLO; LiteRT's converter makes a flatbuffer of it without TensorFlow.
"""

import importlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from imagepiece_jax.common import extras, nodes
from imagepiece_jax.common.device import available_cores
from imagepiece_jax.common.files import AnyPath, replace_file
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters import file_program
from imagepiece_jax.exporters.program_interface import ProgramInterface
from imagepiece_jax.inference import optimize
from imagepiece_jax.kernels import forms, gelu

FORMAT_TITLE = "a LiteRT file"
FORMAT_VERSION = "LiteRT"
FORMAT_FACTS: Mapping[str, Any] = {}
FORMAT_DTYPES = ("float32", "float16")
HAS_OPEN_BATCH = False  # the converter unrolls the batch of products
WRITER_MODULE = "litert_converter"
RUNTIME_MODULE = "ai_edge_litert"
RUNTIME_TITLE = "LiteRT"
RUN_LINES = """\
from ai_edge_litert.interpreter import Interpreter
run = Interpreter("{file}").get_signature_runner()
outputs = run({images}=images)"""
PROGRAM_KIND = "LiteRT file"
MIN_HALF_SIZE = 256  # smaller constants stay float32 in a float16 file


def build_graph(interface: ProgramInterface) -> bytes:
    """Build a model's flatbuffer, from images to outputs.

    A float16 model has its weights in float16. The device chooses the type that
    computes, which is float32 on CPUs.

    Raises InputError if the converter refuses the model.
    """
    pretrained = interface.pretrained
    model, variables = optimize.fold_and_cast(pretrained.model, pretrained.variables)
    is_half = model.execution.dtype == np.float16
    # CPUs have no kernels for float16: they read weights of that type as float32.
    model = model.with_execution(dtype=np.dtype("float32"))
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables)
    forward = interface.make_forward_function(model)

    def compute_outputs(images):
        # LiteRT has no loops: without jit JAX unrolls them.
        with (
            forms.reference_forms(),
            nodes.replaced_functions(gelu=converter_gelu),
            jax.disable_jit(),
        ):
            return forward(variables, images)

    export_function = jax.export.export(jax.jit(compute_outputs), platforms=["cpu"])
    stablehlo_program = export_function(interface.input_spec)
    flatbuffer = convert_program(stablehlo_program.mlir_module_serialized, interface)
    return with_half_constants(flatbuffer) if is_half else flatbuffer


def converter_gelu(x: jax.Array, variant: str = "exact") -> jax.Array:
    """GELU as the composite that the converter turns into LiteRT's own operator."""
    if variant != "exact":  # "tanh" is recognized, and "quick" has two operators
        return gelu.plain_gelu(x, variant)

    def exact_gelu(x, approximate):  # an attribute of the composite
        return gelu.plain_gelu(x, variant)

    composite = jax.lax.composite(exact_gelu, "aten.gelu.default")
    return composite(x, approximate="none")


def convert_program(stablehlo_bytes: bytes, interface: ProgramInterface) -> bytes:
    """Convert a portable StableHLO artifact to a flatbuffer with a signature."""
    # Modules as values: type checkers find no stubs for them.
    ir = importlib.import_module("litert_converter.mlir.ir")
    passmanager = importlib.import_module("litert_converter.mlir.passmanager")
    stablehlo = importlib.import_module("litert_converter.mlir.dialects.stablehlo")
    library = "litert_converter.mlir._mlir_libs.converter_api_ext"
    converter = importlib.import_module(library)
    context = ir.Context()
    converter.prepare_mlir_context(context)
    try:
        with context:
            module = stablehlo.deserialize_portable_artifact(context, stablehlo_bytes)
            config = converter.ConvertToTFLConfig()
            passes = passmanager.PassManager()
            converter.run_convert_to_tfl_passes(module, passes, config)
            input_names = [interface.input_name]
            signature = "serving_default", input_names, interface.output_names
            converter.set_signature(module.operation, *signature)
            return converter.export_flatbuffer_to_bytes(module.operation)
    except Exception as error:  # the converter's errors share no class
        reason = " ".join(str(error).split())
        raise InputError(f"LiteRT's converter refuses the model: {reason}") from error


def with_half_constants(flatbuffer: bytes) -> bytes:
    """Store large constants in float16 if that changes none of their values."""
    flatbuffers = importlib.import_module("flatbuffers")
    schema = importlib.import_module("litert_converter.schema_py_generated")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(flatbuffer, 0))
    dequantize_code = schema.OperatorCodeT()
    dequantize_code.builtinCode = schema.BuiltinOperator.DEQUANTIZE
    # Older readers know only this field.
    dequantize_code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    model.operatorCodes.append(dequantize_code)
    (graph,) = model.subgraphs
    half_buffers = set()
    dequantizing_operators = []
    for index, tensor in enumerate(list(graph.tensors)):
        buffer = model.buffers[tensor.buffer]
        if tensor.type != schema.TensorType.FLOAT32 or buffer.data is None:
            continue  # no data: a computed tensor
        if tensor.buffer not in half_buffers:  # tensors may share a buffer
            numbers = np.asarray(buffer.data, np.uint8).view(np.float32)
            with np.errstate(over="ignore"):  # infinity equals no constant: it stays
                halves = numbers.astype(np.float16)
            if len(numbers) < MIN_HALF_SIZE or not np.array_equal(halves, numbers):
                continue
            buffer.data = halves.view(np.uint8)
            half_buffers.add(tensor.buffer)
        half_tensor = schema.TensorT()
        half_tensor.shape = tensor.shape
        half_tensor.type = schema.TensorType.FLOAT16
        half_tensor.name = tensor.name + b"_half"
        half_tensor.buffer = tensor.buffer
        tensor.buffer = 0  # the empty buffer, of computed tensors
        operator = schema.OperatorT()
        operator.opcodeIndex = len(model.operatorCodes) - 1  # dequantize_code
        operator.inputs = [len(graph.tensors)]
        operator.outputs = [index]
        graph.tensors.append(half_tensor)
        dequantizing_operators.append(operator)
    # Operators run in this order.
    graph.operators = dequantizing_operators + graph.operators
    builder = flatbuffers.Builder(len(flatbuffer))
    builder.Finish(model.Pack(builder), b"TFL3")  # the mark of a .tflite file
    return bytes(builder.Output())


def write_graph(path: AnyPath, graph: bytes) -> None:
    """Write a flatbuffer to a file, which has all weights."""
    replace_file(pathlib.Path(path), graph)


def open_file(path: AnyPath, threads: int | None = None) -> file_program.FileProgram:
    """Open a .tflite file, as `open_program` does."""
    extras.check_installed(FORMAT_TITLE, RUNTIME_MODULE)

    def open_runtime(path, facts):
        litert = importlib.import_module("ai_edge_litert.interpreter")
        num_threads = threads or available_cores()
        interpreter = litert.Interpreter(str(path), num_threads=num_threads)
        interpreter.allocate_tensors()
        (input_detail,) = interpreter.get_input_details()
        # The facts have one output, or a list.
        all_names = [output["name"] for output in np.ravel(facts["output"])]
        output_details = interpreter.get_signature_runner().get_output_details()

        def make_call(images, names):
            names = names or all_names
            output_indices = [output_details[name]["index"] for name in names]

            def call():
                interpreter.set_tensor(input_detail["index"], images)
                interpreter.invoke()
                return [interpreter.get_tensor(index) for index in output_indices]

            return call

        return make_call

    return file_program.open_described(path, open_runtime)
