"""An ONNX model of a ViT: images to logits or tokens, with weights and reduction."""

from typing import TYPE_CHECKING

import jax
import numpy as np

from imagepiece_jax.common import nodes
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import jax_export, optimize
from imagepiece_jax.inference.jax_export import IMAGES
from imagepiece_jax.inference.onnx_graph import Graph, Value
from imagepiece_jax.inference.token_list import TokenList
from imagepiece_jax.models.pretrained import Pretrained

if TYPE_CHECKING:
    from onnx import ModelProto


def onnx_model(
    vit: Pretrained,
    *,
    batch_size: int | None = None,
    pixels: bool = False,
    tokens: int | None = None,
) -> "ModelProto":
    """The graph of images [batch, H, W, 3] -> logits [batch, classes], both float32.

    Nodes are of opset `OPSET`: no Scatter, Loop, If or NonZero, and all shapes but the
    batch are fixed. Weights are float32.

    batch_size, pixels, tokens: as `jax_export.serialized` takes them; `source` of a
        `TokenList` is int64
    Raises InputError for a model whose reduction has no graph, or draws.
    """
    model = vit.model_with_tokens(tokens).clone(kernels=None)
    if jax_export.draws(model):
        field, allowed = "config.reduction", "the other methods, or --format jax"
        problem = f"is {vit.label}, which draws random numbers, and has no ONNX graph"
        raise InputError(problem, field=field, value=vit.label, allowed=allowed)
    images = jax_export.exported_images(vit, batch_size, pixels, tokens)
    fast, fixed = optimize.prepare(model, vit.variables, dtype="float32")
    with nodes.marked():
        run = optimize.forward(fast, tokens is not None)
        traced = jax.make_jaxpr(run)(fixed, images)
    entry = Value(images.shape, np.dtype(images.dtype), IMAGES)
    graph, weights = Graph(entry), []
    for path, leaf in jax.tree_util.tree_leaves_with_path(fixed["params"]):
        weights.append(Value.of(leaf))
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        graph.name_of(weights[-1], name)
    results = graph.walk(traced, [*weights, entry])
    shapes = (each.shape for each in traced.out_avals)
    results = map(graph.output, results, shapes)
    single = [jax_export.output_name(vit.model)]
    names = single if tokens is None else TokenList._fields
    return graph.finished(dict(zip(names, results, strict=True)))
