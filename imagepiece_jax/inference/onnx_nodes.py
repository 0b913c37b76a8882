"""Functions that are marked as one node (common.nodes), as ONNX operators.

Each function of TABLE has the name and the arguments of the one that it stands for,
after the graph; its docstring is there.
"""

import numpy as np

from imagepiece_jax.inference.onnx_graph import Value

TABLE = {}


def stands(fn):
    """Enter a function in TABLE."""
    TABLE[fn.__name__] = fn
    return fn


# The network


@stands
def layer_norm(graph, x, scale, bias, dtype, eps=1e-6):
    x = graph.cast(x, np.float32)
    out = graph.op(
        *("LayerNormalization", [x, scale, bias], x.shape, np.float32),
        axis=-1,
        epsilon=float(eps),
    )
    return graph.cast(out, dtype)


@stands
def gelu(graph, x, form="exact"):
    if form == "quick":
        factor = Value.of(np.array(1.702, x.dtype))
        share = graph.elementwise("Sigmoid", [graph.elementwise("Mul", [x, factor])])
        return graph.elementwise("Mul", [x, share])
    kind = {"exact": "none", "tanh": "tanh"}[form]
    return graph.elementwise("Gelu", [x], approximate=kind)


@stands
def attend(graph, query, key, value, key_bias=None, *, backend="xla", length=None):
    weights = _weights(graph, query, key, key_bias)
    value = graph.transpose(value, (0, 2, 1, 3))
    shape = (*weights.shape[:3], value.shape[3])
    out = graph.op("MatMul", [weights, value], shape, value.dtype)
    return graph.transpose(out, (0, 2, 1, 3))


def _weights(graph, query, key, key_bias):
    """[B, N, H, d] twice, [B, M] -> [B, H, N, M]."""
    scale = Value.of(np.array(query.shape[-1] ** -0.5, query.dtype))
    query = graph.transpose(graph.elementwise("Mul", [query, scale]), (0, 2, 1, 3))
    key = graph.transpose(key, (0, 2, 3, 1))
    shape = (*query.shape[:3], key.shape[3])
    logits = graph.op("MatMul", [query, key], shape, query.dtype)
    if key_bias is not None:
        batch, tokens = key_bias.shape
        bias = graph.cast(key_bias, query.dtype)
        bias = graph.reshape(bias, (batch, 1, 1, tokens))
        logits = graph.elementwise("Add", [logits, bias])
    return graph.op("Softmax", [logits], shape, query.dtype, axis=-1)


@stands
def class_attention(graph, query, key, key_bias=None):
    query, key = (graph.cast(x, np.float32) for x in (query, key))
    batch, heads, width = query.shape
    query = graph.reshape(query, (batch, 1, heads, width))
    weights = _weights(graph, query, key, key_bias)
    mean = graph.reduce("ReduceMean", weights, (1,))
    return graph.reshape(mean, (batch, key.shape[1]))


@stands
def log_sum_exp(graph, logits):
    return graph.reduce("ReduceLogSumExp", logits, (1,))


# Order and choice


@stands
def order_key(graph, score):
    return graph.cast(score, np.float32)  # the scores themselves, whose order it is


def _top(graph, x, count, largest):
    """(values, int64 places) of the first `count` of each row in order."""
    shape = (*x.shape[:-1], count)
    return graph.ops(
        "TopK",
        [x, Value.of(np.array([count], np.int64))],
        [(shape, x.dtype), (shape, np.int64)],
        axis=-1,
        largest=int(largest),
        sorted=1,
    )


@stands
def rank(graph, score):
    n = score.shape[-1]
    _, order = _top(graph, score, n, largest=True)
    _, place = _top(graph, order, n, largest=False)
    return graph.cast(place, np.int32)


@stands
def count_before(graph, keep):
    axis = Value.of(np.array(1, np.int64))
    keep = graph.cast(keep, np.int32)
    return graph.op("CumSum", [keep, axis], keep.shape, np.int32, exclusive=1)


@stands
def place_among(graph, keep):
    before = count_before(graph, keep)
    none = Value.of(np.array(-keep.shape[1], np.int32))
    return graph.op("Where", [keep, before, none], keep.shape, np.int32)


@stands
def invert(graph, position, wanted):
    return pick(graph, position, wanted)[0]


@stands
def pick(graph, position, length, *values):
    if isinstance(length, int):
        length = Value.of(np.arange(length, dtype=np.int32))
    batch, n = position.shape
    length = graph.reshape(length, (1, length.shape[-1], 1))
    position = graph.reshape(position, (batch, 1, n))
    holds = graph.elementwise("Equal", [position, length], bool)
    if not values:
        values = [Value.of(np.arange(n, dtype=np.int32)[None])]
    none, found = Value.of(np.array(0, np.int32)), []
    for value in values:
        value = graph.reshape(value, (value.shape[0], 1, n))
        held = graph.op("Where", [holds, value, none], holds.shape, np.int32)
        found.append(graph.reduce("ReduceSum", held, (2,)))
    return found


@stands
def sums(graph, values, axis):
    return [graph.reduce("ReduceSum", value, (axis,)) for value in values]


@stands
def last_and_any(graph, values, flags):
    last = graph.reduce("ReduceMax", values, (-1,))
    return [last, graph.reduce("ReduceMax", flags, (-1,))]


@stands
def find_partners(graph, similarity, tokens):
    batch, a, t = similarity.shape
    best = graph.reduce("ReduceMax", similarity, (2,))
    place = graph.op("ArgMax", [similarity], (batch, a), np.int64, axis=2, keepdims=0)
    if tokens.array is not None:
        (tokens,) = tokens.array
        row = graph.op("Gather", [Value.of(tokens), place], (batch, a), tokens.dtype)
        return [best, row]
    tokens = graph.whole(tokens, (batch, t))
    return [best, gather_rows(graph, tokens, place)]


@stands
def gather_rows(graph, x, index):
    shape = (*index.shape, *x.shape[2:])
    index = graph.cast(index, np.int64)
    if x.ndim == index.ndim == 2:
        return graph.op("GatherElements", [x, index], shape, x.dtype, axis=1)
    index = graph.reshape(index, (*index.shape, 1))
    return graph.op("GatherND", [x, index], shape, x.dtype, batch_dims=1)
