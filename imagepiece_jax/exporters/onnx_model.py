"""ONNX models of a ViT with weights and reduction, and their files."""

import hashlib
import os
import pathlib
import re
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from imagepiece_jax import kernels
from imagepiece_jax.common import nodes
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters.onnx_graph import Graph, Value
from imagepiece_jax.exporters.onnx_primitives import add_equations
from imagepiece_jax.exporters.program_facts import output_dtype
from imagepiece_jax.exporters.program_interface import ProgramInterface
from imagepiece_jax.inference import optimize
from imagepiece_jax.models.pretrained import Pretrained

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

ONNX_OPSET = 20  # the first with Gelu
MAX_PROTOBUF_BYTES = 2**31 - 1  # bytes of the largest file in protobuf, ONNX's format
ENTRY_OVERHEAD_BYTES = 64  # upper bound of the extra bytes per node or tensor
MIN_EXTERNAL_BYTES = 1024  # smaller tensors stay in the graph: runtimes read shapes
NAME_DIGEST_DIGITS = 16  # digest digits in a file's name


def build_onnx_model(
    vit: Pretrained,
    *,
    batch_size: int | None = None,
    takes_pixels: bool = False,
    interface: ProgramInterface | None = None,
) -> "ModelProto":
    """Build a model's ONNX graph, from images [batch, H, W, 3] to logits, both float32.

    The graph has opset `ONNX_OPSET`, and no Scatter, Loop, If or NonZero. All shapes
    are fixed except the batch. Weights and layers have the model's dtype. In a 16-bit
    dtype norms, softmax, the head, and scores and order of reductions stay float32.

    batch_size: images per call; None: any number
    takes_pixels: uint8 images, normalized by the program; else float32
    interface: the program's inputs and outputs; None: images and logits
    """
    interface = interface or ProgramInterface(vit)
    check_deterministic(vit, interface)
    input_spec = interface.input_spec(batch_size, takes_pixels)
    model, variables = optimize.fold_and_cast(interface.model, vit.variables)
    with nodes.marked_functions(), kernels.reference_forms():
        forward = interface.make_forward_function(model)
        jaxpr = jax.make_jaxpr(forward)(variables, input_spec)
    images = Value(input_spec.shape, np.dtype(input_spec.dtype), interface.input_name)
    graph = Graph(images)
    # Weights are named first: initializers have the parameters' names ("head.bias").
    weights = []
    for path, param in jax.tree_util.tree_leaves_with_path(variables["params"]):
        weights.append(Value.constant(param))
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        graph.name_value(weights[-1], name)
    try:
        output_values = add_equations(graph, jaxpr, [*weights, images])
    except TypeError as error:
        if "PRNGKey" not in str(error):  # JAX's keys have no type in NumPy
            raise
        raise InputError(
            f"reduction is {vit.typed_reduction}, which computes with jax.random: it "
            "has no graph; draw constants by NumPy"
        ) from error
    output_of_name = {}
    for name, output_value, aval in zip(
        interface.output_names, output_values, jaxpr.out_avals, strict=True
    ):
        output_value = graph.cast(output_value, output_dtype(aval.dtype))
        output_of_name[name] = graph.as_output(output_value, aval.shape)
    return wrap_graph(graph.graph_proto(output_of_name))


def check_deterministic(vit: Pretrained, interface: ProgramInterface) -> None:
    """Refuse a plan that draws random numbers."""
    for layer in interface.model.plan:
        step, counts = layer.step, layer.counts  # no counts where all tokens stay
        if step and counts and step.reducer.draws_random(counts, train=False):
            raise InputError(
                f"reduction is {vit.typed_reduction}, which draws random numbers: it "
                "has no graph"
            )


def wrap_graph(graph: "GraphProto") -> "ModelProto":
    """Wrap a graph in an ONNX model, in the oldest file format with its operators."""
    from onnx import helper

    opsets = [helper.make_opsetid("", ONNX_OPSET)]
    return helper.make_model(
        graph,
        producer_name="imagepiece_jax",
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
    )


def write_onnx(path: str | os.PathLike, model: "ModelProto") -> pathlib.Path | None:
    """Write a model to a file, or to two files if it exceeds protobuf's 2 GB.

    The second file, PATH.DIGEST.data, holds the large weights, which leave `model`.

    Returns the second file's path, or None.
    """
    import onnx

    path = pathlib.Path(path)
    if _model_bytes(model) <= MAX_PROTOBUF_BYTES:
        path.write_bytes(model.SerializeToString())
        return None
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= MIN_EXTERNAL_BYTES:
            digest.update(tensor.raw_data)
    short_digest = digest.hexdigest()[:NAME_DIGEST_DIGITS]
    weights_file = path.with_name(f"{path.name}.{short_digest}.data")
    weights_file.unlink(missing_ok=True)  # onnx would append to it
    options = {"location": weights_file.name, "size_threshold": MIN_EXTERNAL_BYTES}
    onnx.save_model(model, path, save_as_external_data=True, **options)
    return weights_file


def remove_earlier_weights(
    path: str | os.PathLike,
    earlier_name: Any,
    new_weights_file: pathlib.Path | None = None,
) -> None:
    """Remove the weights file of an earlier graph at `path`.

    earlier_name: the file's name in the earlier graph's facts. A name that `write_onnx`
        does not give is left alone.
    new_weights_file: the new graph's weights file, which stays
    """
    path = pathlib.Path(path)
    pattern = rf"{re.escape(path.name)}\.[0-9a-f]{{{NAME_DIGEST_DIGITS}}}\.data"
    if isinstance(earlier_name, str) and re.fullmatch(pattern, earlier_name):
        if new_weights_file is None or new_weights_file.name != earlier_name:
            path.with_name(earlier_name).unlink(missing_ok=True)


def _model_bytes(model):
    """Bytes of a graph with its weights, or a few more."""
    num_bytes = 0
    for node in model.graph.node:
        num_bytes += node.ByteSize() + ENTRY_OVERHEAD_BYTES
    for tensor in model.graph.initializer:
        num_bytes += len(tensor.raw_data) + len(tensor.name) + ENTRY_OVERHEAD_BYTES
    return num_bytes
