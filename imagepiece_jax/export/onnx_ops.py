"""ONNX nodes for the functions that `common.nodes` marks.

A function here has its marked function's name and arguments. The marked function's
docstring describes the computation.
"""

import numpy as np

from imagepiece_jax.export.onnx_graph import Note, Value
from imagepiece_jax.models.layers import QUICK

OPS = {}  # {name of a marked function: function (graph, *its arguments)}


def translates(fn):
    """Decorator that enters a function in OPS."""
    OPS[fn.__name__] = fn
    return fn


# The network


@translates
def layer_norm(graph, x, scale, bias, dtype, eps=1e-6):
    x = graph.cast(x, np.float32)
    options = {"axis": -1, "epsilon": float(eps)}
    operands = [x, scale, bias]
    out = graph.op("LayerNormalization", operands, x.shape, x.dtype, **options)
    return graph.cast(out, dtype)


@translates
def gelu(graph, x, variant="exact"):
    if variant == "quick":
        share = graph.elementwise("Sigmoid", graph.elementwise("Mul", x, QUICK))
        return graph.elementwise("Mul", x, share)
    kind = {"exact": "none", "tanh": "tanh"}[variant]
    return graph.elementwise("Gelu", x, approximate=kind)


@translates
def attend(graph, query, key, value, key_bias=None, *, backend="xla", length=None):
    weights = attention_map(graph, query, key, key_bias)
    graph.notes[key.name] = Note(attention=(query, key_bias, weights))
    return _weighted_sum(graph, weights, value)


def _weighted_sum(graph, weights, value):
    value = graph.transpose(value, (0, 2, 1, 3))
    shape = (*weights.shape[:3], value.shape[3])
    weights = graph.cast(weights, value.dtype)
    out = graph.op("MatMul", [weights, value], shape, value.dtype)
    return graph.transpose(out, (0, 2, 1, 3))


@translates
def attention_map(graph, query, key, key_bias=None, mask=None, eps=1e-6):
    if mask is not None:
        return None
    query = graph.elementwise("Mul", query, query.shape[-1] ** -0.5)
    query = graph.transpose(query, (0, 2, 1, 3))
    key = graph.transpose(key, (0, 2, 3, 1))
    shape = (*query.shape[:3], key.shape[3])
    logits = graph.op("MatMul", [query, key], shape, query.dtype)
    logits = graph.cast(logits, np.float32)
    if key_bias is not None:
        batch, tokens = key_bias.shape
        bias = graph.cast(key_bias, np.float32)
        bias = graph.reshape(bias, (batch, 1, 1, tokens))
        logits = graph.elementwise("Add", logits, bias)
    return graph.op("Softmax", [logits], shape, np.float32, axis=-1)


@translates
def mean_query(graph, query, live=None):
    tokens = query.shape[1]
    return _weighted_queries(graph, query, np.full((1, tokens), 1 / tokens))


@translates
def class_and_mean_queries(graph, query, live=None):
    tokens = query.shape[1]
    class_token = np.arange(tokens) == 0
    return _weighted_queries(graph, query, [class_token, np.full(tokens, 1 / tokens)])


def _weighted_queries(graph, query, weights):
    """Weighted sums of queries [B, N, H, d]; weights: [Q, N]. -> [B, Q, H, d]."""
    # onnxruntime's ReduceMean over tokens takes three times as long.
    batch, tokens, heads, width = query.shape
    rows = graph.reshape(graph.cast(query, np.float32), (batch, tokens, heads * width))
    weights = np.asarray(weights, np.float32)[None]
    count = weights.shape[1]
    sums = graph.op(
        "MatMul", [weights, rows], (batch, count, heads * width), np.float32
    )
    return graph.reshape(sums, (batch, count, heads, width))


@translates
def mean_attention(graph, query, key, key_bias=None):
    """The class token's attention is a row of the full attention, if that is there."""
    query = graph.cast(query, np.float32)
    key = graph.cast(key, np.float32)
    weights = None
    attention = graph.notes[key.name].attention
    if attention:  # the full attention, the class token first
        queries, bias, all_weights = attention
        first = graph.slice(queries, 1, 0, 1)
        if first == query and bias == key_bias:
            weights = graph.slice(all_weights, 2, 0, 1)
    if weights is None:
        weights = attention_map(graph, query, key, key_bias)
    return graph.reduce("ReduceMean", weights, (1, 2))


@translates
def log_sum_exp(graph, logits):
    return graph.reduce("ReduceLogSumExp", logits, (1,))


@translates
def unit(graph, x, eps=1e-6):
    slice_of = graph.notes[x.name].slice_of
    if slice_of and slice_of[1] < x.ndim - 1:  # all rows, once for all slices
        rows, axis, start = slice_of
        limit = start + x.shape[axis]
        return graph.slice(unit(graph, rows, eps), axis, start, limit)
    x = graph.cast(x, np.float32)
    squares = graph.reduce("ReduceSumSquare", x, (-1,), keep=True)
    length = graph.elementwise("Sqrt", graph.elementwise("Add", squares, eps))
    return graph.elementwise("Div", x, length)


# Order and choice


def _top(graph, x, count, largest):
    """(values, int64 indices) of the `count` largest or smallest per row."""
    shape = (*x.shape[:-1], count)
    results = [(shape, x.dtype), (shape, np.int64)]
    options = {"axis": -1, "largest": int(largest), "sorted": 1}
    return graph.ops("TopK", [x, [count]], results, **options)


@translates
def rank(graph, score):
    n = score.shape[-1]
    _, tokens = _top(graph, score, n, largest=True)
    # Sorting the sorted tokens' indices inverts the permutation: it gives the ranks.
    _, ranks = _top(graph, tokens, n, largest=False)
    ranks = graph.cast(ranks, np.int32)
    graph.notes[ranks.name] = Note(sorted_tokens=tokens)
    return ranks


@translates
def count_before(graph, keep):
    keep = graph.cast(keep, np.int32)
    return graph.op("CumSum", [keep, 1], keep.shape, np.int32, exclusive=1)


@translates
def index_among(graph, keep):
    before = count_before(graph, keep)
    n = keep.shape[1]
    # As in `ops.index_among`, the index of a dropped token is negative.
    index = graph.op("Where", [keep, before, -n], keep.shape, np.int32)
    graph.notes[index.name] = Note(keep=keep)
    return index


@translates
def invert(graph, position, values):
    keep = graph.notes[position.name].keep
    if keep and isinstance(values, int):
        return _kept_tokens(graph, keep, values)
    indices = Value.constant(np.arange(position.shape[1])[None])
    return _picked(graph, position, values, indices)[0]


@translates
def pick(graph, position, length, *values):
    return _picked(graph, position, length, *values)


def _picked(graph, position, ranks, *values):
    """Pick the tokens' values at wanted positions, like `ops.pick`.

    ranks: a number m for the positions 0..m-1, or an array of positions
    """
    batch, n = position.shape
    # If `position` is known to be a rank, the sorted tokens replace the comparison of
    # all pairs.
    tokens = graph.notes[position.name].sorted_tokens
    # A missing position has no sorted token.
    known = np.arange(ranks) if isinstance(ranks, int) else ranks.array
    has_all = known is not None and ((known >= 0) & (known < n)).all()
    if tokens and has_all:
        if isinstance(ranks, int):
            index = graph.slice(tokens, 1, 0, ranks)
        else:
            ranks = graph.cast(ranks, np.int64)
            shape = (batch, ranks.shape[-1])
            index = graph.op("Gather", [tokens, ranks], shape, np.int64, axis=1)
        return [gather_rows(graph, value, index) for value in values]
    if isinstance(ranks, int):
        ranks = Value.constant(np.arange(ranks))
    ranks = graph.reshape(ranks, (1, ranks.shape[-1], 1))
    position = graph.reshape(position, (position.shape[0], 1, n))
    is_wanted = graph.elementwise("Equal", position, ranks, dtype=bool)

    def picked(value):
        value = graph.reshape(value, (value.shape[0], 1, n))
        value = graph.cast(value, np.float32)
        operands = [is_wanted, value, np.float32(0)]
        taken = graph.op("Where", operands, is_wanted.shape, np.float32)
        total = graph.reduce("ReduceSum", taken, (2,))
        return graph.cast(total, np.int32)

    return [picked(value) for value in values]


def _kept_tokens(graph, keep, length):
    """Indices [B, length] of the first kept tokens, filled up with 0."""
    n = keep.shape[1]
    ranks = graph.notes[keep.name].ranks
    if ranks:
        tokens, first, end = ranks
        if end - first == length:
            kept = graph.slice(tokens, 1, first, end)
            return _top(graph, kept, length, largest=False)[0]
    # A dropped token counts as n, behind all kept tokens.
    index = graph.op("Where", [keep, np.arange(n)[None], n], keep.shape, np.int64)
    lowest, _ = _top(graph, index, length, largest=False)
    behind = graph.elementwise("Equal", lowest, n, dtype=bool)
    return graph.op("Where", [behind, 0, lowest], lowest.shape, np.int64)


@translates
def sums(graph, values, axis):
    return [graph.reduce("ReduceSum", value, (axis,)) for value in values]


@translates
def find_partners(graph, similarity, tokens):
    batch, a, _ = similarity.shape
    best = graph.reduce("ReduceMax", similarity, (2,))
    options = {"axis": 2, "keepdims": 0}
    index = graph.op("ArgMax", [similarity], (batch, a), np.int64, **options)
    return [best, gather_rows(graph, tokens, index)]


@translates
def distance_to_earlier(graph, alike, order):
    # Sums and minima of numbers: onnxruntime's comparison and "Where" take three times
    # as long. Other tokens get at most -3, an earlier token its similarity.
    batch, n, _ = alike.shape
    order = graph.cast(order, np.float32)
    mine = graph.reshape(graph.elementwise("Mul", order, 4), (batch, n, 1))
    other = graph.reshape(graph.elementwise("Add", mine, 4), (batch, 1, n))
    penalty = graph.elementwise("Min", graph.elementwise("Sub", mine, other), 0)
    highest = graph.elementwise("Add", alike, penalty)
    highest = graph.reduce("ReduceMax", highest, (2,))
    # The first token's distance is 4, not 2: it has the highest score anyway.
    one = Value.constant(np.float32(1))
    return graph.elementwise("Sub", one, highest)


@translates
def join_kept(graph, alike, order, n_out):
    batch, n, _ = alike.shape
    itself = 2 * np.eye(n, dtype=np.float32)[None]
    alike = graph.elementwise("Add", alike, itself)
    tokens = invert(graph, order, n_out)
    to_kept = gather_rows(graph, alike, tokens)  # similarities are symmetric
    options = {"axis": 1, "keepdims": 0}
    slot = graph.op("ArgMax", [to_kept], (batch, n), np.int64, **options)
    best = graph.reduce("ReduceMax", to_kept, (1,))
    return [slot, graph.elementwise("Min", best, 1)]


@translates
def gather_rows(graph, x, index):
    index = graph.cast(index, np.int64)
    tokens, first = graph.unsliced(index, 1)
    values, order = graph.notes[x.name].by_rank or (None, None)
    if tokens == order:  # sorted values of sorted tokens
        return graph.slice(values, 1, first, first + index.shape[1])
    if x.ndim > 2 and index.array is None:
        x, start = graph.unsliced(x, 1)
        index = graph.elementwise("Add", index, start)
    shape = (*index.shape, *x.shape[2:])
    rows = graph.unexpanded(x).array
    if rows is not None and (rows == rows[:1]).all():  # the same rows for all images
        rows = np.broadcast_to(rows, (len(rows), *x.shape[1:]))
        if np.array_equal(rows[0], range(x.shape[1])):
            return graph.cast(index, x.dtype)
        return graph.op("Gather", [rows[0], index], shape, x.dtype, axis=0)
    if x.ndim == index.ndim == 2:
        out = graph.op("GatherElements", [x, index], shape, x.dtype, axis=1)
        tokens = graph.notes[index.name].sorted_tokens
        if tokens:
            graph.notes[out.name] = Note(by_rank=(x, tokens))
        return out
    index = graph.reshape(index, (*index.shape, 1))
    return graph.op("GatherND", [x, index], shape, x.dtype, batch_dims=1)


def _is_in_slot(graph, dest, n_out):
    """`state.is_in_slot` as float32."""
    batch, n = dest.shape
    slots = np.arange(n_out)[None, :, None]
    dest = graph.reshape(dest, (batch, 1, n))
    return graph.cast(graph.elementwise("Equal", dest, slots, dtype=bool), np.float32)


@translates
def sum_by_slot(graph, values, dest, n_out):
    belongs = _is_in_slot(graph, dest, n_out)
    batch, n = values.shape
    values = graph.reshape(graph.cast(values, np.float32), (batch, n, 1))
    total = graph.op("MatMul", [belongs, values], (batch, n_out, 1), np.float32)
    return graph.reshape(total, (batch, n_out))


@translates
def slot_matrix(graph, weight, dest, n_out, mean):
    batch, n = weight.shape
    weight = graph.reshape(graph.cast(weight, np.float32), (batch, 1, n))
    matrix = graph.elementwise("Mul", _is_in_slot(graph, dest, n_out), weight)
    if not mean:
        return matrix
    total = graph.reduce("ReduceSum", matrix, (2,), keep=True)
    return graph.elementwise("Div", matrix, total)


@translates
def merge(graph, x, size, result):
    """Kept rows, plus a matrix product of the absorbed rows."""
    index = result.index
    if index is None:
        return None
    batch, n_out = index.keep.shape
    absorbs = index.absorbed.shape[1]
    prefix = x.shape[1] - result.dest.shape[1]
    keep, absorbed, _ = _with_prefix(graph, index, prefix)
    slot = np.arange(-prefix, n_out)[None, :, None]
    target = graph.reshape(index.target, (batch, 1, absorbs))
    joins = graph.elementwise("Equal", slot, target, dtype=bool)

    def terms(values=None):
        """Kept values [B, s, 1], absorbed values [B, s, e], sums [B, s, 1]."""
        kept = Value.constant(np.float32(1))  # no values: ones
        if values is not None:
            values = graph.reshape(values, (*values.shape, 1))
            kept = gather_rows(graph, values, keep)
        if not absorbs:
            return kept, None, kept
        added = graph.cast(joins, np.float32)
        if values is not None:
            added = gather_rows(graph, values, absorbed)
            added = graph.reshape(added, (batch, 1, absorbs))
            operands = [joins, added, np.float32(0)]
            added = graph.op("Where", operands, joins.shape, np.float32)
        total = graph.reduce("ReduceSum", added, (2,), keep=True)
        return kept, added, graph.elementwise("Add", kept, total)

    factor, shares, total = terms(size)
    sizes = graph.reshape(total, keep.shape)
    kept = gather_rows(graph, x, keep)
    if result.mean and not absorbs:
        return [kept, sizes]
    # Means are float32 in float16 graphs, too.
    kept = graph.cast(kept, np.float32)
    if result.weight is not None:
        weight = graph.cast(result.weight, np.float32)
        operands = [weight, [0, prefix, 0, 0], np.float32(1)]
        weight = graph.op("Pad", operands, size.shape, np.float32)
        factor, shares, total = terms(weight)
    elif not result.by_size:
        factor, shares, total = terms()
    if result.mean:
        factor = graph.elementwise("Div", factor, total)
        shares = graph.elementwise("Div", shares, total)
    merged = graph.elementwise("Mul", kept, factor)
    if absorbs:
        absorbed = graph.cast(gather_rows(graph, x, absorbed), np.float32)
        added = graph.op("MatMul", [shares, absorbed], merged.shape, np.float32)
        merged = graph.elementwise("Add", merged, added)
    return [graph.cast(merged, x.dtype), sizes]


@translates
def attend_merged(graph, weights, value, result, size):
    """Attend to the values of the tokens' slots, then merge the outputs like tokens."""
    # A merged map has sums of columns, and means of rows.
    batch, heads, queries, tokens = weights.shape
    slots = value.shape[1]
    index = result.index
    absorbs = 0 if index is None else index.absorbed.shape[1]
    if not absorbs or slots + absorbs < tokens:  # none merges, or some are dropped
        return None
    keep, absorbed, target = _with_prefix(graph, index, tokens - result.dest.shape[1])
    _, places = _top(graph, graph.concat([keep, absorbed], 1), tokens, largest=False)
    slot = graph.expand(Value.constant([range(slots)], np.int64), keep.shape)
    slot = gather_rows(graph, graph.concat([slot, target], 1), places)
    rows = graph.reshape(value, (batch, slots, heads * value.shape[3]))
    rows = gather_rows(graph, rows, slot)
    heads = (heads, value.shape[3])
    out = _weighted_sum(graph, weights, graph.reshape(rows, (batch, tokens, *heads)))
    if queries < tokens:
        return out
    rows, _ = merge(graph, graph.reshape(out, rows.shape), size, result)
    return graph.reshape(rows, (batch, slots, *heads))


def _with_prefix(graph, index, prefix):
    """(keep, absorbed, target) of an index, counting the prefix, which stays."""
    indices = (index.keep, index.absorbed, index.target)
    keep, absorbed, target = (graph.elementwise("Add", i, prefix) for i in indices)
    if prefix:
        front = Value.constant([range(prefix)], np.int64)
        front = graph.expand(front, (keep.shape[0], prefix))
        keep = graph.concat([front, keep], 1)
    return keep, absorbed, target
