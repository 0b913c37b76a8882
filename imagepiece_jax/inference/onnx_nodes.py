"""Functions that are marked as one node (common.nodes), as ONNX operators.

Each function of TABLE has the name and the arguments of the one that it stands for,
after the graph; its docstring is there.
"""

import numpy as np

from imagepiece_jax.inference.onnx_graph import Value
from imagepiece_jax.models.custom_vjp import QUICK

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
        factor = Value.of(np.array(QUICK, x.dtype))
        share = graph.elementwise("Sigmoid", [graph.elementwise("Mul", [x, factor])])
        return graph.elementwise("Mul", [x, share])
    kind = {"exact": "none", "tanh": "tanh"}[form]
    return graph.elementwise("Gelu", [x], approximate=kind)


@stands
def attend(graph, query, key, value, key_bias=None, *, backend="xla", length=None):
    weights = _weights(graph, query, key, key_bias)
    graph.notes[key.name] = "attended", query, key_bias, weights
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
    row = graph.reshape(query, (batch, 1, heads, width))
    weights = None
    note, *known = graph.notes.get(key.name, (None,))
    if note == "attended":  # by all tokens, the class token first
        every, bias, found = known
        first = graph.slice(every, (0, 0, 0, 0), (batch, 1, heads, width))
        if first == row and bias == key_bias:
            limits = batch, heads, 1, found.shape[3]
            weights = graph.slice(found, (0, 0, 0, 0), limits)
    if weights is None:
        weights = _weights(graph, row, key, key_bias)
    mean = graph.reduce("ReduceMean", weights, (1,))
    return graph.reshape(mean, (batch, key.shape[1]))


@stands
def log_sum_exp(graph, logits):
    return graph.reduce("ReduceLogSumExp", logits, (1,))


@stands
def unit(graph, x, eps=1e-6):
    note, *known = graph.notes.get(x.name, (None,))
    if note == "rows":  # two sides of one array: all of it at once
        whole, *sides = known
        return graph.slice(unit(graph, whole, eps), *sides)
    x = graph.cast(x, np.float32)
    squares = graph.reduce("ReduceSumSquare", x, (-1,), keep=True)
    least = Value.of(np.array(eps, np.float32))
    length = graph.elementwise("Sqrt", [graph.elementwise("Add", [squares, least])])
    return graph.elementwise("Div", [x, length])


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
    place = graph.cast(place, np.int32)
    graph.notes[place.name] = "order", order
    return place


@stands
def count_before(graph, keep):
    axis = Value.of(np.array(1, np.int64))
    keep = graph.cast(keep, np.int32)
    return graph.op("CumSum", [keep, axis], keep.shape, np.int32, exclusive=1)


@stands
def place_among(graph, keep):
    before = count_before(graph, keep)
    none = Value.of(np.array(-keep.shape[1], np.int32))
    place = graph.op("Where", [keep, before, none], keep.shape, np.int32)
    graph.notes[place.name] = "kept", keep
    return place


@stands
def invert(graph, position, wanted):
    return pick(graph, position, wanted)[0]


@stands
def pick(graph, position, length, *values):
    kind, known = graph.notes.get(position.name, (None, None))
    n = position.shape[1]
    if not values:
        values = [Value.of(np.arange(n, dtype=np.int32)[None])]
    if kind == "kept" and isinstance(length, int):
        return [gather_rows(graph, v, _kept(graph, known, length)) for v in values]
    if isinstance(length, int):
        length = Value.of(np.arange(length, dtype=np.int32))
    if kind == "order":
        taken = graph.cast(length, np.int64)
        shape = position.shape[0], length.shape[-1]
        index = graph.op("Gather", [known, taken], shape, np.int64, axis=1)
        return [gather_rows(graph, value, index) for value in values]
    length = graph.reshape(length, (1, length.shape[-1], 1))
    position = graph.reshape(position, (position.shape[0], 1, n))
    holds = graph.elementwise("Equal", [position, length], bool)
    none, found = Value.of(np.array(0, np.float32)), []
    for value in values:
        value = graph.cast(graph.reshape(value, (value.shape[0], 1, n)), np.float32)
        held = graph.op("Where", [holds, value, none], holds.shape, np.float32)
        found.append(graph.cast(graph.reduce("ReduceSum", held, (2,)), np.int32))
    return found


def _kept(graph, keep, length):
    """The first `length` indices of kept tokens, 0 after their end. -> [B, length]."""
    n = keep.shape[1]
    side, *known = graph.notes.get(keep.name, (None,))
    if side in ("before", "from"):
        order, place = known
        ends = (0, place) if side == "before" else (place, n)
        if ends[1] - ends[0] == length:
            batch = keep.shape[0]
            chosen = graph.slice(order, (0, ends[0]), (batch, ends[1]))
            return _top(graph, chosen, length, largest=False)[0]
    index = Value.of(np.arange(n, dtype=np.int64)[None])
    none = Value.of(np.array(n, np.int64))
    index = graph.op("Where", [keep, index, none], keep.shape, np.int64)
    first, _ = _top(graph, index, length, largest=False)
    zero = Value.of(np.array(0, np.int64))
    behind = graph.elementwise("Equal", [first, none], bool)
    return graph.op("Where", [behind, zero, first], first.shape, np.int64)


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
    # Both at once: as ArgMax OpenVINO 2026.4 takes six times as long.
    best, place = (
        graph.reshape(found, (batch, a)) for found in _top(graph, similarity, 1, True)
    )
    if tokens.array is not None:
        (tokens,) = tokens.array
        row = graph.op("Gather", [Value.of(tokens), place], (batch, a), tokens.dtype)
        return [best, row]
    tokens = graph.whole(tokens, (batch, t))
    return [best, gather_rows(graph, tokens, place)]


@stands
def gather_rows(graph, x, index):
    if x.array is not None and np.array_equal(x.array, [range(x.shape[1])]):
        return graph.cast(index, x.dtype)  # a row of 0, 1, 2, ..
    shape = (*index.shape, *x.shape[2:])
    index = graph.cast(index, np.int64)
    if x.ndim == index.ndim == 2:
        return graph.op("GatherElements", [x, index], shape, x.dtype, axis=1)
    index = graph.reshape(index, (*index.shape, 1))
    return graph.op("GatherND", [x, index], shape, x.dtype, batch_dims=1)


@stands
def _move_by_index(graph, x, weight, total, index, dest, mean):
    """Kept rows, and a product with the few that are absorbed."""
    n_out, absorbs = index.keep.shape[1], index.groups.shape[1]
    batch, prefix = x.shape[0], x.shape[1] - dest.shape[1]
    front = Value.of(np.broadcast_to(np.arange(prefix)[None], (1, prefix)))
    row = _behind(graph, front, _shifted(graph, index.keep, prefix))
    kept = gather_rows(graph, x, row)
    if weight is None or (mean and not absorbs):
        return kept

    def shares(tokens, slots=None):
        found = gather_rows(graph, weight, tokens)
        if total is None:
            return found
        whole = total if slots is None else gather_rows(graph, total, slots)
        return graph.elementwise("Div", [found, whole])

    ones = Value.of(np.ones((1, prefix), np.float32))
    factor = _behind(graph, ones, shares(index.keep))
    factor = graph.reshape(factor, (*factor.shape, 1))
    kept = graph.elementwise("Mul", [kept, graph.cast(factor, x.dtype)])
    if not absorbs:
        return kept
    last = Value.of(np.array(n_out - 1, np.int32))
    slots = graph.elementwise("Min", [index.target, last])  # padding's is n_out
    share = shares(index.absorbed, slots)
    moved = gather_rows(graph, x, _shifted(graph, index.absorbed, prefix))
    share = graph.reshape(share, (*share.shape, 1))
    moved = graph.elementwise("Mul", [moved, graph.cast(share, x.dtype)])
    target = graph.reshape(index.target, (batch, 1, index.target.shape[1]))
    places = Value.of(np.arange(-prefix, n_out, dtype=np.int32)[None, :, None])
    goes = graph.elementwise("Equal", [places, target], bool)
    added = graph.op("MatMul", [graph.cast(goes, x.dtype), moved], kept.shape, x.dtype)
    return graph.elementwise("Add", [kept, added])


def _behind(graph, front, values):
    """A row that is the same for all images, and `values`. [1, p], [B, n]."""
    if not front.shape[1]:
        return values
    front = Value.of(front.array.astype(values.dtype))
    front = graph.whole(front, (values.shape[0], front.shape[1]))
    shape = values.shape[0], front.shape[1] + values.shape[1]
    return graph.op("Concat", [front, values], shape, values.dtype, axis=1)


def _shifted(graph, index, by):
    by = Value.of(np.array(by, np.int64))
    return graph.elementwise("Add", [graph.cast(index, np.int64), by])
