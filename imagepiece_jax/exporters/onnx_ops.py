"""ONNX nodes for the functions that `common.nodes` marks.

`add_gelu` has the arguments of the marked function `gelu`, whose docstring describes
the computation.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from imagepiece_jax.exporters.onnx_graph import Graph, Note, Shape, Value, Values
from imagepiece_jax.kernels.gelu import QUICK_GELU_FACTOR

# The network


def add_layer_norm(
    graph: Graph,
    x: Value,
    scale: Value,
    bias: Value,
    dtype: DTypeLike,
    eps: float = 1e-6,
) -> Value:
    """Normalize rows [.., dim] in float32, and cast them to `dtype`."""
    x = graph.cast(x, np.float32)
    options = {"axis": -1, "epsilon": float(eps)}
    operands = [x, scale, bias]
    rows = graph.add_node("LayerNormalization", operands, x.shape, x.dtype, **options)
    return graph.cast(rows, dtype)


def add_gelu(graph: Graph, x: Value, variant: str = "exact") -> Value:
    if variant == "quick":
        scaled_input = graph.add_elementwise("Mul", x, QUICK_GELU_FACTOR)
        gate = graph.add_elementwise("Sigmoid", scaled_input)
        return graph.add_elementwise("Mul", x, gate)
    approximation = {"exact": "none", "tanh": "tanh"}[variant]
    return graph.add_elementwise("Gelu", x, approximate=approximation)


def add_dot_product_attention(
    graph: Graph,
    query: Value,
    key: Value,
    value: Value,
    key_bias: Value | None = None,
    *,
    backend: str = "xla",
    length: int | None = None,
) -> Value:
    """Add softmax attention; a Note has its weights for `add_mean_attention`.

    Query [B, Q, H, d], key and value [B, N, H, d], key_bias [B, N] -> [B, Q, H, d].
    backend and length: of the JAX function, and without effect here
    """
    weights = _attention_weights(graph, query, key, key_bias)
    graph.notes[key.name] = Note(attention=(query, key_bias, weights))
    return _weighted_sum(graph, weights, value)


def _weighted_sum(graph: Graph, weights: Value, value: Value) -> Value:
    value = graph.transpose(value, (0, 2, 1, 3))
    shape = (*weights.shape[:3], value.shape[3])
    weights = graph.cast(weights, value.dtype)
    weighted_values = graph.add_node("MatMul", [weights, value], shape, value.dtype)
    return graph.transpose(weighted_values, (0, 2, 1, 3))


def add_attention_map(
    graph: Graph,
    query: Value,
    key: Value,
    key_bias: Value | None = None,
    mask: Value | None = None,
    eps: float = 1e-6,
) -> Value | None:
    """Attention weights, [B, H, Q, N]; None, so no node of its own, with a mask."""
    if mask is not None:
        return None
    return _attention_weights(graph, query, key, key_bias)


def _attention_weights(
    graph: Graph, query: Value, key: Value, key_bias: Value | None
) -> Value:
    """Softmax of queries times keys. [B, Q, H, d], [B, N, H, d] -> [B, H, Q, N]."""
    query = graph.add_elementwise("Mul", query, query.shape[-1] ** -0.5)
    query = graph.transpose(query, (0, 2, 1, 3))
    key = graph.transpose(key, (0, 2, 3, 1))
    shape = (*query.shape[:3], key.shape[3])
    logits = graph.add_node("MatMul", [query, key], shape, query.dtype)
    logits = graph.cast(logits, np.float32)
    if key_bias is not None:
        batch, n = key_bias.shape
        bias = graph.cast(key_bias, np.float32)
        bias = graph.reshape(bias, (batch, 1, 1, n))
        logits = graph.add_elementwise("Add", logits, bias)
    return graph.add_node("Softmax", [logits], shape, np.float32, axis=-1)


def add_mean_query(graph: Graph, query: Value, live_mask: Value | None = None) -> Value:
    n = query.shape[1]
    return _weighted_queries(graph, query, np.full((1, n), 1 / n))


def add_class_and_mean_queries(
    graph: Graph, query: Value, live_mask: Value | None = None
) -> Value:
    n = query.shape[1]
    class_token = np.arange(n) == 0
    return _weighted_queries(graph, query, [class_token, np.full(n, 1 / n)])


def _weighted_queries(graph: Graph, query: Value, weights: ArrayLike) -> Value:
    """Weighted sums of queries [B, N, H, d]; weights: [Q, N]. -> [B, Q, H, d]."""
    # onnxruntime's ReduceMean over tokens takes three times as long.
    batch, n, num_heads, head_dim = query.shape
    dim = num_heads * head_dim
    rows = graph.reshape(graph.cast(query, np.float32), (batch, n, dim))
    weights = np.asarray(weights, np.float32)[None]
    shape = (batch, weights.shape[1], dim)
    weighted_sums = graph.add_node("MatMul", [weights, rows], shape, np.float32)
    return graph.reshape(weighted_sums, (*shape[:2], num_heads, head_dim))


def add_mean_attention(
    graph: Graph, query: Value, key: Value, key_bias: Value | None = None
) -> Value:
    """Attention to every token, as a mean over queries and heads.

    [B, Q, H, d], [B, N, H, d] -> [B, N] float32.
    """
    query = graph.cast(query, np.float32)
    key = graph.cast(key, np.float32)
    weights = None
    attention = graph.notes[key.name].attention
    if attention:  # the full attention has the class token's, in its first row
        all_queries, all_bias, all_weights = attention
        class_query = graph.slice(all_queries, 1, 0, 1)
        if class_query == query and all_bias == key_bias:
            weights = graph.slice(all_weights, 2, 0, 1)
    if weights is None:
        weights = _attention_weights(graph, query, key, key_bias)
    return graph.add_reduction("ReduceMean", weights, (1, 2))


def add_log_sum_exp(graph: Graph, logits: Value) -> Value:
    return graph.add_reduction("ReduceLogSumExp", logits, (1,))


def add_unit_vectors(graph: Graph, x: Value, eps: float = 1e-6) -> Value:
    """Scale rows [.., dim] to length 1, in float32."""
    slice_of = graph.notes[x.name].slice_of
    if slice_of and slice_of[1] < x.ndim - 1:  # all rows, once for all slices
        rows, axis, start = slice_of
        limit = start + x.shape[axis]
        return graph.slice(add_unit_vectors(graph, rows, eps), axis, start, limit)
    x = graph.cast(x, np.float32)
    squares = graph.add_reduction("ReduceSumSquare", x, (-1,), keepdims=True)
    length = graph.add_elementwise("Sqrt", graph.add_elementwise("Add", squares, eps))
    return graph.add_elementwise("Div", x, length)


# Order and choice
#
# Indices of tokens are numbers. A token is picked by a product with a row that is 1 at
# its index (`_one_hot`), or by int64 indices if the graph `gathers`.


def _one_hot(graph: Graph, index: Value, n: int) -> Value:
    """1 at each index, and 0 elsewhere. [B, m] -> [B, m, n] float32."""
    batch, num_indices = index.shape
    source, start = graph.source_and_start(index, 1)
    source_one_hot = graph.notes[source.name].one_hot
    if source_one_hot and source_one_hot.shape[2] == n:
        return graph.slice(source_one_hot, 1, start, start + num_indices)
    return _equality(graph, graph.reshape(index, (batch, num_indices, 1)), np.arange(n))


def _equality(graph: Graph, values: Value, numbers: Value | ArrayLike) -> Value:
    """Compare values with numbers. -> float32, 1 where they are equal."""
    if values.array is not None and not isinstance(numbers, Value):
        return Value.constant(np.equal(values.array, numbers), np.float32)
    is_equal = graph.add_elementwise("Equal", values, numbers, dtype=bool)
    return graph.cast(is_equal, np.float32)


def _as_float_index(graph: Graph, int_index: Value) -> Value:
    """Indices as float32, with a Note of their int64 form."""
    index = graph.cast(int_index, np.float32)
    graph.notes[index.name] = Note(int_index=int_index)
    return index


def _sorted_indices(graph: Graph, x: Value, largest: bool) -> Value:
    """Indices [B, n] int64 of sorted numbers."""
    n = x.shape[1]
    options = {"axis": -1, "largest": int(largest), "sorted": 1}
    output_types = [(x.shape, x.dtype), (x.shape, np.int64)]
    return graph.add_multi_output_node("TopK", [x, [n]], output_types, **options)[1]


def add_rank_tokens(graph: Graph, score: Value) -> Value:
    """Rank of every token, 0 for the highest score. [B, n] -> [B, n] float32."""
    batch, n = score.shape
    score = graph.cast(score, np.float32)
    if graph.uses_gather_nodes:
        tokens = _sorted_indices(graph, score, largest=True)
        # Sorting a permutation inverts it: it gives the ranks.
        ranks = graph.cast(_sorted_indices(graph, tokens, largest=False), np.float32)
        graph.notes[ranks.name] = Note(sorted_tokens=tokens)
        return ranks
    own_score = graph.reshape(score, (batch, n, 1))
    other_score = graph.reshape(score, (batch, 1, n))
    is_higher = graph.add_elementwise("Greater", other_score, own_score, dtype=bool)
    is_later = np.triu(np.ones((n, n), np.float32), 1)[None]
    is_higher = graph.cast(is_higher, np.float32)
    is_later_ahead = graph.add_elementwise("Mul", is_higher, is_later)
    # A token comes behind later tokens with higher scores, and behind earlier tokens,
    # except those with lower scores.
    num_later_ahead = graph.add_reduction("ReduceSum", is_later_ahead, (2,))
    num_later_ahead = graph.reshape(num_later_ahead, other_score.shape)
    num_behind = graph.add_reduction("ReduceSum", is_later_ahead, (1,), keepdims=True)
    num_earlier_ahead = graph.add_elementwise(
        "Sub", np.arange(n)[None, None], num_behind
    )
    ranks = graph.add_elementwise("Add", num_earlier_ahead, num_later_ahead)
    return graph.reshape(ranks, (batch, n))


def add_count_kept_before(graph: Graph, keep: Value) -> Value:
    keep = graph.cast(keep, np.float32)
    return graph.add_node("CumSum", [keep, 1], keep.shape, np.float32, exclusive=1)


def add_index_kept_tokens(graph: Graph, keep: Value) -> Value:
    kept_before = add_count_kept_before(graph, keep)
    # As in `ranking.index_kept_tokens`, the index of a dropped token is negative.
    operands = [keep, kept_before, np.float32(-keep.shape[1])]
    return graph.add_node("Where", operands, keep.shape, np.float32)


def add_invert_order(graph: Graph, position: Value, wanted: int | Value) -> Value:
    """Find the tokens at all positions below `wanted`, or at those it lists. [B, m]."""
    batch, n = position.shape
    targets = Value.constant(np.arange(wanted)) if isinstance(wanted, int) else wanted
    m = targets.shape[-1]
    ranks_and_first = None
    known_targets = np.ravel(-1 if targets.array is None else targets.array)
    if known_targets.size and (np.diff(known_targets) == 1).all():
        ranks_and_first = (position, int(known_targets[0]))
    sorted_tokens = graph.notes[position.name].sorted_tokens
    # A missing position has no sorted token.
    if sorted_tokens and (known_targets >= 0).all() and (known_targets < n).all():
        operands = [sorted_tokens, known_targets.astype(np.int64)]
        int_index = graph.add_node("Gather", operands, (batch, m), np.int64, axis=1)
        index = graph.cast(int_index, np.float32)
        graph.notes[index.name] = Note(int_index=int_index, ranks=ranks_and_first)
        return index
    position_column = graph.reshape(targets, (1, m, 1))
    one_hot = _equality(graph, graph.reshape(position, (batch, 1, n)), position_column)
    tokens = Value.constant(np.arange(n)[None])
    terms = _weighted_columns(graph, one_hot, tokens)
    index = graph.add_reduction("ReduceSum", terms, (2,))
    graph.notes[index.name] = Note(one_hot=one_hot, ranks=ranks_and_first)
    return index


def add_pick_by_rank(
    graph: Graph, ranks: Value, length: int | Value, *values: Value
) -> Values:
    """Gather values [B, n] at the tokens that `add_invert_order` finds. -> [B, m]."""
    index = add_invert_order(graph, ranks, length)
    one_hot = graph.notes[index.name].one_hot
    if one_hot is None:
        return [add_gather_rows(graph, value, index) for value in values]
    # A missing rank has a row of zeros, and so the value 0.
    terms = [_weighted_columns(graph, one_hot, value) for value in values]
    return [graph.add_reduction("ReduceSum", term, (2,)) for term in terms]


def add_sum_arrays(graph: Graph, arrays: Values, axis: int) -> Values:
    return [graph.add_reduction("ReduceSum", value, (axis,)) for value in arrays]


def add_find_partners(graph: Graph, similarity: Value, tokens: Value) -> Values:
    best_similarity, best_position = find_extremum(graph, similarity, 2, "Max")
    return [best_similarity, add_gather_rows(graph, tokens, best_position)]


def find_extremum(graph: Graph, x: Value, axis: int, kind: str) -> tuple[Value, Value]:
    """The largest value along an axis, and its first index, without the axis.

    kind: "Max", or "Min" for the smallest value
    """
    source, order = graph.source_and_order(x)
    other_axes = [each for each in order if each != order[axis]]
    if other_axes == sorted(other_axes):
        # onnxruntime would transpose booleans, which WebGPU does not.
        x = source
        axis = order[axis]
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    if graph.uses_gather_nodes:
        options = {"axis": int(axis), "keepdims": 0}
        index = graph.add_node(f"Arg{kind}", [x], shape, np.int64, **options)
        extremum = graph.add_reduction(f"Reduce{kind}", x, (axis,))
        return extremum, _as_float_index(graph, index)
    extremum = graph.add_reduction(f"Reduce{kind}", x, (axis,), keepdims=True)
    is_extremum = graph.add_elementwise("Equal", x, extremum, dtype=bool)
    length = x.shape[axis]
    index_shape = [1] * x.ndim
    index_shape[axis] = length
    indices = Value.constant(np.arange(length).reshape(index_shape))
    operands = [is_extremum, indices, np.float32(length)]
    candidate_indices = graph.add_node("Where", operands, is_extremum.shape, np.float32)
    index = graph.add_reduction("ReduceMin", candidate_indices, (axis,), keepdims=True)
    return graph.reshape(extremum, shape), graph.reshape(index, shape)


def add_distance_to_earlier(graph: Graph, similarity: Value, ranks: Value) -> Value:
    """1 less each token's largest similarity to a token of lower rank, [B, n]."""
    # Sums and minima of numbers: onnxruntime's comparison and "Where" take three times
    # as long. Other tokens get at most -3, an earlier token its similarity.
    batch, n, _ = similarity.shape
    own_rank = graph.reshape(graph.add_elementwise("Mul", ranks, 4), (batch, n, 1))
    other_rank = graph.reshape(graph.add_elementwise("Add", own_rank, 4), (batch, 1, n))
    lead = graph.add_elementwise("Sub", own_rank, other_rank)
    penalty = graph.add_elementwise("Min", lead, 0)
    earlier_similarity = graph.add_elementwise("Add", similarity, penalty)
    nearest_similarity = graph.add_reduction("ReduceMax", earlier_similarity, (2,))
    # The first token's distance is 4, not 2: it has the highest score anyway.
    one = Value.constant(np.float32(1))
    return graph.add_elementwise("Sub", one, nearest_similarity)


def add_join_kept(graph: Graph, similarity: Value, ranks: Value, n_out: int) -> Values:
    """Join every token to the most similar of the first `n_out`: [slot, similarity].

    similarity [B, n, n], ranks [B, n] -> slots of all tokens and similarities, [B, n].
    """
    n = similarity.shape[1]
    # So much that a kept token joins itself. The last line takes it off again.
    self_bonus = 2 * np.eye(n, dtype=np.float32)[None]
    similarity = graph.add_elementwise("Add", similarity, self_bonus)
    tokens = add_invert_order(graph, ranks, n_out)
    # Similarities are symmetric, so rows stand for columns.
    kept_similarity = add_gather_rows(graph, similarity, tokens)
    best_similarity, slot = find_extremum(graph, kept_similarity, 1, "Max")
    return [slot, graph.add_elementwise("Min", best_similarity, 1)]


def add_gather_rows(graph: Graph, x: Value, index: Value) -> Value:
    """Rows of x [B, n, ..] at indices [B, ..], by the fewest nodes for both."""
    n = x.shape[1]
    shape = (*index.shape, *x.shape[2:])
    if index.ndim != 2:
        index = graph.reshape(index, (index.shape[0], math.prod(index.shape[1:])))
        return graph.reshape(add_gather_rows(graph, x, index), shape)
    if x.dtype.kind == "b":
        return graph.cast(add_gather_rows(graph, graph.as_number(x), index), bool)
    array = graph.broadcast_source(x).array
    if array is not None and array.ndim == x.ndim and len(array) == 1:
        if (array == array[:, :1]).all():  # the same for all tokens
            return graph.expand(Value.constant(array[:, :1]), shape)
        if array.ndim == 2 and array.dtype == np.float32:
            with np.errstate(all="ignore"):
                step = array[0, 1] - array[0, 0]
                spaced_numbers = np.arange(n, dtype=np.float32) * step + array[0, 0]
            if np.array_equal(array[0], spaced_numbers):
                scaled_index = graph.add_elementwise("Mul", index, step)
                return graph.add_elementwise("Add", scaled_index, array[0, 0])
    index_source, start = graph.source_and_start(index, 1)
    by_rank = graph.notes[x.name].by_rank
    index_ranks = graph.notes[index_source.name].ranks
    if by_rank and index_ranks:
        values, ranks = by_rank
        token_ranks, first_rank = index_ranks
        # x has, per token, the value at its rank: in order of ranks, x is the values.
        if token_ranks == ranks:
            start += first_rank
            return graph.slice(values, 1, start, start + index.shape[1])
    if graph.uses_gather_nodes:
        return _gather_by_integers(graph, x, index, shape)
    one_hot = _one_hot(graph, index, n)
    if x.ndim == 2:
        # Not a product of matrices, which int8 would round.
        picked_values = _row_sums(graph, _weighted_columns(graph, one_hot, x))
        picked_values = graph.cast(graph.reshape(picked_values, shape), x.dtype)
        graph.notes[picked_values.name] = Note(by_rank=(x, index))
        return picked_values
    rows = graph.reshape(x, (*x.shape[:2], math.prod(x.shape[2:])))
    return graph.reshape(_token_product(graph, one_hot, rows), shape)


def _gather_by_integers(graph: Graph, x: Value, index: Value, shape: Shape) -> Value:
    """Gather rows by the int64 form of their indices."""
    index_shape = (*index.shape, 1) if x.ndim > 2 else index.shape
    if index.array is not None:
        int_index = Value.int64_constant(index.array.reshape(index_shape))
    else:
        source, start = graph.source_and_start(index, 1)
        int_index = graph.notes[source.name].int_index or graph.cast(source, np.int64)
        int_index = graph.slice(int_index, 1, start, start + index.shape[1])
        int_index = graph.reshape(int_index, index_shape)
    if x.ndim > 2:
        return graph.add_node("GatherND", [x, int_index], shape, x.dtype, batch_dims=1)
    return graph.add_node("GatherElements", [x, int_index], shape, x.dtype, axis=1)


def _token_product(graph: Graph, matrix: Value, x: Value) -> Value:
    """Multiply a matrix [B, m, n] and tokens [B, n, D], in the tokens' dtype."""
    matrix = graph.cast(matrix, x.dtype)
    shape = (*matrix.shape[:2], x.shape[2])
    return graph.add_node("MatMul", [matrix, x], shape, x.dtype)


# Slots


def _is_in_slot(graph: Graph, dest: Value, n_out: int) -> Value:
    """`merging.is_in_slot` as float32."""
    batch, n = dest.shape
    slots = np.arange(n_out)[None, :, None]
    return _equality(graph, graph.reshape(dest, (batch, 1, n)), slots)


def add_sum_by_slot(
    graph: Graph, values: Value, slot_of_token: Value, n_out: int
) -> Value:
    terms = _weighted_columns(graph, _is_in_slot(graph, slot_of_token, n_out), values)
    return graph.add_reduction("ReduceSum", terms, (2,))


def add_slot_matrix(
    graph: Graph, weight: Value, slot_of_token: Value, n_out: int, mean: bool
) -> Value:
    matrix = _weighted_columns(graph, _is_in_slot(graph, slot_of_token, n_out), weight)
    if not mean:
        return matrix
    return graph.add_elementwise("Div", matrix, _row_sums(graph, matrix))


def _weighted_columns(graph: Graph, matrix: Value, weight: Value) -> Value:
    """Multiply columns by weights. [B, m, n], [B, n] -> [B, m, n] float32."""
    weight = graph.cast(weight, np.float32)
    weight_array = graph.broadcast_source(weight).array
    if weight_array is not None and (weight_array == 1).all():
        return matrix
    weight = graph.reshape(weight, (weight.shape[0], 1, weight.shape[1]))
    return graph.add_elementwise("Mul", matrix, weight)


def _row_sums(graph: Graph, matrix: Value) -> Value:
    return graph.add_reduction("ReduceSum", matrix, (2,), keepdims=True)


def add_merge_features(
    graph: Graph, x: Value, size: Value, assignment: Any
) -> Values | None:
    """Add kept rows, plus a matrix product of the absorbed rows.

    x [B, n, D], size [B, n] -> [x [B, s, D], size [B, s]], with s slots; None without
    an index.
    """
    index = assignment.index
    if index is None:
        return None
    batch, n_out = index.kept_tokens.shape
    num_absorbed = index.absorbed_tokens.shape[1]
    num_prefix = x.shape[1] - assignment.slot_of_token.shape[1]
    kept_index = _prefixed_index(graph, index.kept_tokens, num_prefix)
    kept_rows = add_gather_rows(graph, x, kept_index)
    absorbed_index = None
    if num_absorbed:
        absorbed_index = _prefixed_index(
            graph, index.absorbed_tokens, num_prefix, False
        )
        # Prefix tokens, in slots below 0, absorb nothing.
        slots = np.arange(-num_prefix, n_out)[None, :, None]
        target_slots = graph.reshape(index.target_slots, (batch, 1, num_absorbed))
        is_joined = _equality(graph, target_slots, slots)

    def add_terms(
        values: Value | None = None,
    ) -> tuple[Value, Value | None, Value]:
        """Kept values [B, s, 1], e absorbed values [B, s, e], sums [B, s, 1]."""
        kept_values = Value.constant(np.float32(1))  # no values: ones
        if values is not None:
            kept_values = add_gather_rows(graph, values, kept_index)
            kept_values = graph.reshape(kept_values, (*kept_values.shape, 1))
        if absorbed_index is None:
            return kept_values, None, kept_values
        absorbed_matrix = is_joined
        if values is not None:
            absorbed_values = add_gather_rows(graph, values, absorbed_index)
            absorbed_matrix = _weighted_columns(graph, is_joined, absorbed_values)
        absorbed_sums = _row_sums(graph, absorbed_matrix)
        slot_sums = graph.add_elementwise("Add", kept_values, absorbed_sums)
        return kept_values, absorbed_matrix, slot_sums

    kept_factor, absorbed_factor, slot_sums = add_terms(size)
    merged_sizes = graph.reshape(slot_sums, kept_index.shape)
    if assignment.mean and not num_absorbed:
        return [kept_rows, merged_sizes]
    # Means are float32 in float16 graphs, too.
    kept_rows = graph.cast(kept_rows, np.float32)
    if assignment.weight is not None:
        weight = graph.cast(assignment.weight, np.float32)
        operands = [weight, [0, num_prefix, 0, 0], np.float32(1)]
        weight = graph.add_node("Pad", operands, size.shape, np.float32)
        kept_factor, absorbed_factor, slot_sums = add_terms(weight)
    elif not assignment.by_size:
        kept_factor, absorbed_factor, slot_sums = add_terms()
    if assignment.mean:
        kept_factor = graph.add_elementwise("Div", kept_factor, slot_sums)
    if assignment.mean and absorbed_factor is not None:
        absorbed_factor = graph.add_elementwise("Div", absorbed_factor, slot_sums)
    merged_rows = graph.add_elementwise("Mul", kept_rows, kept_factor)
    if absorbed_index is not None and absorbed_factor is not None:
        absorbed_rows = add_gather_rows(graph, x, absorbed_index)
        absorbed_rows = graph.cast(absorbed_rows, np.float32)
        absorbed_sums = _token_product(graph, absorbed_factor, absorbed_rows)
        merged_rows = graph.add_elementwise("Add", merged_rows, absorbed_sums)
    return [graph.cast(merged_rows, x.dtype), merged_sizes]


def _prefixed_index(
    graph: Graph, index: Value, num_prefix: int, with_prefix: bool = True
) -> Value:
    """Count the prefix in indices [B, m] of image tokens.

    with_prefix: put the prefix's own indices in front, [B, prefix + m]
    """
    shifted_index = graph.add_elementwise("Add", index, num_prefix)
    if not num_prefix or not with_prefix:
        return shifted_index
    batch, num_indices = index.shape
    operands = [shifted_index, [0, num_prefix, 0, 0], np.float32(0)]
    length = num_prefix + num_indices
    padded_index = graph.add_node("Pad", operands, (batch, length), np.float32)
    if num_prefix == 1:  # its index is the padding's 0
        return padded_index
    prefix_index = np.zeros((1, length), np.float32)
    prefix_index[0, :num_prefix] = np.arange(num_prefix)
    return graph.add_elementwise("Add", padded_index, prefix_index)


def add_attend_merged(
    graph: Graph, attention: Value, value: Value, assignment: Any, size: Value
) -> Value | None:
    """Attend to the values of the tokens' slots, then merge the outputs like tokens.

    [B, H, Q, n], [B, s, H, d] -> [B, Q, H, d], or [B, s, H, d] if all n tokens attend.
    """
    # A merged map has sums of columns, and means of rows.
    batch, num_heads, num_queries, n = attention.shape
    num_slots = value.shape[1]
    index = assignment.index
    num_absorbed = 0 if index is None else index.absorbed_tokens.shape[1]
    # None merges, or some are dropped.
    if not num_absorbed or num_slots + num_absorbed < n:
        return None
    num_prefix = n - assignment.slot_of_token.shape[1]
    slot_of_row = _prefixed_index(graph, assignment.slot_of_token, num_prefix)
    value_rows = graph.reshape(value, (batch, num_slots, num_heads * value.shape[3]))
    value_rows = add_gather_rows(graph, value_rows, slot_of_row)
    shape = (batch, n, num_heads, value.shape[3])
    out = _weighted_sum(graph, attention, graph.reshape(value_rows, shape))
    if num_queries < n:
        return out
    out = graph.reshape(out, value_rows.shape)
    merged_arrays = add_merge_features(graph, out, size, assignment)
    return graph.reshape(merged_arrays[0], value.shape) if merged_arrays else None
