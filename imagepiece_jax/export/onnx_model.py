"""An ONNX model of a ViT with its weights and reduction, and its files."""

import hashlib
import os
import pathlib
import re
import tempfile
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from imagepiece_jax.common import nodes, signals
from imagepiece_jax.common.files import replace_file, replacing
from imagepiece_jax.errors import InputError
from imagepiece_jax.export.onnx_graph import Graph, Value
from imagepiece_jax.export.onnx_primitives import walk
from imagepiece_jax.export.program_facts import exported_images
from imagepiece_jax.export.program_outputs import ProgramOutputs
from imagepiece_jax.inference import optimize
from imagepiece_jax.models.pretrained import Pretrained

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

OPSET = 20  # the first with Gelu
LARGEST = 2**31 - 1  # the most bytes of a file in protobuf, ONNX's format
ENTRY = 64  # more bytes than a node or a tensor takes besides its own
SMALL = 1024  # tensors of fewer bytes stay in the graph, where runtimes read shapes
DIGITS = 16  # digits of the digest in a file's name


def onnx_model(
    vit: Pretrained,
    *,
    batch_size: int | None = None,
    pixels: bool = False,
    outputs: ProgramOutputs | None = None,
) -> "ModelProto":
    """The ONNX graph of a model, from images [batch, H, W, 3] to logits, both float32.

    The graph is of opset `OPSET` and has no Scatter, Loop, If or NonZero. All shapes
    but the batch are fixed. Weights are float32.

    batch_size: number of images in a call; None: any
    pixels: whether images are uint8, which the program normalizes; else float32
    outputs: what the program takes and returns instead; integers are int64
    """
    wanted = outputs or ProgramOutputs(vit)
    for layer in wanted.model.plan:
        if layer.counts and layer.step.reducer.draws(layer.counts, train=False):
            raise InputError(
                f"reduction is {vit.label}, which draws random numbers: it has no graph"
            )
    images = exported_images(vit, batch_size, pixels, wanted.channels_first)
    fast, fixed = optimize.prepare(wanted.model, vit.variables, dtype="float32")
    with nodes.marked():
        traced = jax.make_jaxpr(wanted.forward(fast))(fixed, images)
    entry = Value(images.shape, np.dtype(images.dtype), wanted.image)
    graph = Graph(entry)
    weights = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(fixed["params"]):
        weight = Value.constant(leaf)
        graph.name_of(weight, jax.tree_util.keystr(path, simple=True, separator="."))
        weights.append(weight)
    results = walk(graph, traced, [*weights, entry])
    named = {}
    for name, result, aval in zip(wanted.names, results, traced.out_avals, strict=True):
        named[name] = graph.output(result, aval.shape)
    return in_model(graph.finished(named))


def in_model(graph: "GraphProto") -> "ModelProto":
    """A graph as an ONNX model, in the oldest file format that has its operators."""
    from onnx import helper

    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        graph,
        producer_name="imagepiece_jax",
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
    )


def write_onnx(path: str | os.PathLike, model: "ModelProto") -> pathlib.Path | None:
    """Write a graph to a file; weights that it cannot hold go into a second file.

    The weights file is written first, under a name with its digest, PATH.DIGEST.data. A
    process that is killed leaves the old graph with its weights, or the new one.

    model: the graph, from which large weights are removed
    Returns the path of the weights file, or None.
    Raises RunError where they cannot be written.
    """
    import onnx

    path = pathlib.Path(path)
    if _size(model) <= LARGEST:
        replace_file(path, model.SerializeToString())
        return None
    tensors = [t for t in model.graph.initializer if len(t.raw_data) >= SMALL]
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.raw_data)
    data = path.with_name(f"{path.name}.{digest.hexdigest()[:DIGITS]}.data")
    with (
        replacing(path) as graph,
        replacing(data) as weights,  # which ends first
        tempfile.TemporaryDirectory(".tmp", ".", path.parent) as folder,
        signals.unfinished(folder),  # gigabytes, which a second Ctrl-C would leave
    ):
        file = pathlib.Path(folder, path.name)
        options = {"location": data.name, "size_threshold": SMALL}
        onnx.save_model(model, file, save_as_external_data=True, **options)
        file.replace(graph)
        file.with_name(data.name).replace(weights)
    return data


def remove_weights(path: str | os.PathLike, name: Any, data: pathlib.Path | None):
    """Remove the weights file of the graph that was at `path` before.

    name: the file's name in the facts about the earlier graph; nothing is removed
        unless `write_onnx` gives such names
    data: the weights file of the new graph, which stays; None: it has none
    """
    path = pathlib.Path(path)
    pattern = rf"{re.escape(path.name)}\.[0-9a-f]{{{DIGITS}}}\.data"
    if isinstance(name, str) and re.fullmatch(pattern, name):
        if data is None or data.name != name:
            path.with_name(name).unlink(missing_ok=True)


def _size(model):
    """The bytes of a graph with its weights, or a few more."""
    total = 0
    for node in model.graph.node:
        total += node.ByteSize() + ENTRY
    for tensor in model.graph.initializer:
        total += len(tensor.raw_data) + len(tensor.name) + ENTRY
    return total
