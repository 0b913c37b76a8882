"""An ONNX model of a ViT: images to logits, weights and reduction included."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from imagepiece_jax.common import nodes
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import onnx_nodes, onnx_primitives, optimize
from imagepiece_jax.inference.onnx_graph import IR_VERSION, OPSET, Graph, Value
from imagepiece_jax.models.vit import ViT

if TYPE_CHECKING:
    from onnx import ModelProto

IMAGES, LOGITS, BATCH = "images", "logits", "batch"


def onnx_model(
    model: ViT,
    variables: Mapping[str, Any],
    image_size,
    *,
    batch_size: int | None = None,
    pixels: bool = False,
) -> "ModelProto":
    """The graph of images [batch, H, W, 3] -> logits [batch, classes], both float32.

    image_size: pixels a side, or (height, width). batch_size: None leaves it open.
    pixels: images are uint8, and are normalized in the graph. Nodes are of opset 20:
    no Scatter, Loop, If or NonZero, and all shapes but the batch are fixed. Weights are
    float32. InputError for a model whose reduction has no graph.
    """
    from onnx import helper, numpy_helper

    fast, fixed = optimize.prepare(model, variables, dtype="float32")
    batch = batch_size
    if batch is None:
        (batch,) = jax.export.symbolic_shape(BATCH)
    shape = batch, *sides(image_size), 3
    dtype = jnp.dtype("uint8" if pixels else "float32")
    traced = _traced(optimize.forward(fast), fixed, jax.ShapeDtypeStruct(shape, dtype))
    images = Value(shape, np.dtype(dtype), IMAGES)
    graph = Graph(
        *(None if batch_size else batch, images),
        *(onnx_primitives.TABLE, onnx_nodes.TABLE),
    )
    weights = traverse_util.flatten_dict(fixed, sep=".")
    # The order of jax.tree.leaves: by sorted keys at each level.
    names = [
        ".".join(str(key.key) for key in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(fixed)
    ]
    values = [
        graph.weight(name.removeprefix("params."), np.asarray(weights[name]))
        for name in names
    ]
    (logits,) = graph.walk(traced, [*values, images])
    graph.prune(logits)
    graph.rename(logits, LOGITS)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    named = helper.make_graph(
        graph.nodes,
        "imagepiece_jax",
        [helper.make_tensor_value_info(IMAGES, kind, _named(shape))],
        [helper.make_tensor_value_info(LOGITS, 1, _named(logits.shape))],
        [
            numpy_helper.from_array(array, name)
            for name, array in graph.constants.values()
        ],
    )
    return helper.make_model(
        named,
        producer_name="imagepiece_jax",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )


def _traced(forward, fixed, images):
    """The jaxpr of the forward pass; marked functions stay whole."""
    try:
        with nodes.kept():
            return jax.make_jaxpr(forward)(fixed, images)
    except TypeError as error:
        if "_DimExpr" not in str(error):
            raise
        raise InputError(
            "the model computes with the number of images, which is open; allowed is "
            "a batch size"
        ) from error


def _named(shape):
    """Sides as ONNX has them: an open one by its name."""
    return [side if isinstance(side, int) else str(side) for side in shape]
