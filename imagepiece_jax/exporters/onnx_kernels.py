"""ONNX nodes of marked functions (`common.nodes`): `add_gelu` is called like `gelu`."""

import numpy as np

from imagepiece_jax.kernels.gelu import QUICK_GELU_FACTOR


def add_layer_norm(graph, x, scale, bias, dtype, eps=1e-6):
    x = graph.cast(x, np.float32)  # norms are float32 in every dtype
    options = {"axis": -1, "epsilon": float(eps)}
    operands = [x, scale, bias]
    rows = graph.add_node("LayerNormalization", operands, x.shape, x.dtype, **options)
    return graph.cast(rows, dtype)


def add_gelu(graph, x, variant="exact"):
    if variant == "quick":
        scaled_input = graph.add_elementwise("Mul", x, QUICK_GELU_FACTOR)
        gate = graph.add_elementwise("Sigmoid", scaled_input)
        return graph.add_elementwise("Mul", x, gate)
    approximation = {"exact": "none", "tanh": "tanh"}[variant]
    return graph.add_elementwise("Gelu", x, approximate=approximation)


def add_attention_map(graph, query, key, key_bias=None, mask=None):
    """Attention weights [B, H, Q, N]; None, so no node of its own, with a mask.

    query, key: [B, Q or N, H, head_dim]; key_bias: [B, N]
    """
    if mask is not None:
        return None
    # The few queries are scaled, not all products.
    query = graph.add_elementwise("Mul", query, query.shape[-1] ** -0.5)
    query = graph.transpose(query, (0, 2, 1, 3))  # [B, H, Q, head_dim]
    key = graph.transpose(key, (0, 2, 3, 1))  # [B, H, head_dim, N]
    shape = (*query.shape[:3], key.shape[3])
    logits = graph.add_node("MatMul", [query, key], shape, query.dtype)
    logits = graph.cast(logits, np.float32)
    if key_bias is not None:
        batch, num_keys = key_bias.shape
        bias = graph.cast(key_bias, np.float32)
        bias = graph.reshape(bias, (batch, 1, 1, num_keys))
        logits = graph.add_elementwise("Add", logits, bias)
    return graph.add_node("Softmax", [logits], shape, np.float32, axis=-1)
