"""JAX's primitives as ONNX operators.

Each function of TABLE takes the graph, the equation and its Values, and returns the
Value of its output, or the Values of several. Constants alone never come here.
"""

import math

import numpy as np

from imagepiece_jax.inference.onnx_graph import Value, broadcast, is_number, unknown

TABLE = {}


def primitive(*names):
    """Enter a function in TABLE."""

    def enter(fn):
        TABLE.update(dict.fromkeys(names, fn))
        return fn

    return enter


# Elementwise

UNARY = {
    "abs": "Abs",
    "cos": "Cos",
    "erf": "Erf",
    "exp": "Exp",
    "log": "Log",
    "logistic": "Sigmoid",
    "neg": "Neg",
    "not": "Not",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}
BINARY = {
    "add": "Add",
    "and": "And",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "or": "Or",
    "pow": "Pow",
    "sub": "Sub",
}
COMPARISONS = {
    "eq": "Equal",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "lt": "Less",
}


# What is known of a comparison of ranks with a number, for onnx_nodes: it holds of the
# tokens before that place of their order, or of those from there on.
SIDES = {"lt": "before", "ge": "from"}
OPPOSITE = {"before": "from", "from": "before"}


@primitive(*UNARY)
def _unary(graph, equation, x):
    found = graph.elementwise(UNARY[equation.primitive.name], [x])
    if equation.primitive.name == "not" and x.name in graph.notes:
        kind, *known = graph.notes[x.name]
        if kind in OPPOSITE:
            graph.notes[found.name] = OPPOSITE[kind], *known
    return found


@primitive(*BINARY)
def _binary(graph, equation, *values):
    name = equation.primitive.name
    truths = values[0].dtype.kind == "b"
    if name in ("and", "or") and not truths:
        raise unknown(f"{name} of integers")
    if truths:
        name = {"max": "or", "min": "and"}.get(name, name)
    return graph.elementwise(BINARY[name], values)


@primitive(*COMPARISONS)
def _comparison(graph, equation, *values):
    values = [graph.cast(v, np.int32) if v.dtype.kind == "b" else v for v in values]
    name = equation.primitive.name
    found = graph.elementwise(COMPARISONS[name], values, bool)
    place, limit = values
    note, *known = graph.notes.get(place.name, (None,))
    if note == "order" and name in SIDES and limit.array is not None:
        if limit.array.size == 1:
            graph.notes[found.name] = SIDES[name], *known, int(limit.array.item())
    return found


@primitive("ne")
def _unequal(graph, equation, *values):
    return graph.elementwise("Not", [graph.elementwise("Equal", values, bool)])


@primitive("rsqrt")
def _rsqrt(graph, equation, x):
    return graph.elementwise("Reciprocal", [graph.elementwise("Sqrt", [x])])


@primitive("square")
def _square(graph, equation, x):
    return graph.elementwise("Mul", [x, x])


@primitive("integer_pow")
def _integer_pow(graph, equation, x):
    power = equation.params["y"]
    if power == 2:
        return graph.elementwise("Mul", [x, x])
    exponent = Value.of(np.array(power, x.dtype))
    return graph.elementwise("Pow", [x, exponent])


@primitive("expm1")
def _expm1(graph, equation, x):
    one = Value.of(np.ones((), x.dtype))
    return graph.elementwise("Sub", [graph.elementwise("Exp", [x]), one])


@primitive("log1p")
def _log1p(graph, equation, x):
    one = Value.of(np.ones((), x.dtype))
    return graph.elementwise("Log", [graph.elementwise("Add", [x, one])])


@primitive("erfc")
def _erfc(graph, equation, x):
    one = Value.of(np.ones((), x.dtype))
    return graph.elementwise("Sub", [one, graph.elementwise("Erf", [x])])


@primitive("rem")
def _rem(graph, equation, a, b):
    return graph.elementwise("Mod", [a, b], fmod=1)


@primitive("select_n")
def _select(graph, equation, which, *cases):
    if len(cases) != 2 or which.dtype.kind != "b":
        raise unknown("a choice among more than two")
    shape = broadcast(*(value.shape for value in (which, *cases)))
    no, yes = cases
    return graph.op("Where", [which, yes, no], shape, yes.dtype)


@primitive("convert_element_type")
def _convert(graph, equation, x):
    return graph.cast(x, equation.params["new_dtype"])


@primitive("copy", "stop_gradient", "optimization_barrier")
def _same(graph, equation, *values):
    return list(values)


# Shapes


@primitive("broadcast_in_dim")
def _broadcast_in_dim(graph, equation, x, *_):
    sides = [1] * len(equation.params["shape"])
    for place, side in zip(
        equation.params["broadcast_dimensions"], x.shape, strict=True
    ):
        sides[place] = side
    return graph.reshape(x, sides)


@primitive("reshape", "squeeze")
def _reshape(graph, equation, x, *_):
    (x,) = graph.wholes(equation, [x])
    return graph.reshape(x, equation.outvars[0].aval.shape)


@primitive("transpose")
def _transpose(graph, equation, x):
    return graph.transpose(x, equation.params["permutation"])


@primitive("concatenate")
def _concatenate(graph, equation, *values):
    values, (out,) = graph.wholes(equation, values), equation.outvars
    axis = int(equation.params["dimension"])
    return graph.op("Concat", values, out.aval.shape, out.aval.dtype, axis=axis)


@primitive("stack")
def _stack(graph, equation, *values):
    axis, (out,) = int(equation.params["axis"]), equation.outvars
    values = [
        graph.reshape(v, (*v.shape[:axis], 1, *v.shape[axis:]))
        for v in graph.wholes(equation, values)
    ]
    return graph.op("Concat", values, out.aval.shape, out.aval.dtype, axis=axis)


@primitive("pad")
def _pad(graph, equation, x, value):
    (x, _), (out,) = graph.wholes(equation, [x, value]), equation.outvars
    low, high, inner = zip(*equation.params["padding_config"], strict=True)
    if any(inner) or min(low) < 0 or min(high) < 0:
        raise unknown("padding between or negative")
    pads = Value.of(np.array([*low, *high], np.int64))
    dtype = x.dtype
    if dtype.kind == "b":  # which not every runtime pads
        x, value = graph.cast(x, np.int32), graph.cast(value, np.int32)
    out = graph.op("Pad", [x, pads, value], out.aval.shape, x.dtype)
    return graph.cast(out, dtype)


@primitive("iota")
def _iota(graph, equation):
    shape, axis = equation.params["shape"], equation.params["dimension"]
    if graph.times(shape[axis]) is not None:
        raise unknown("the number of each image of an open batch")
    sides = [1] * len(shape)
    sides[axis] = shape[axis]
    return Value.of(
        np.arange(shape[axis], dtype=equation.params["dtype"]).reshape(sides)
    )


@primitive("slice")
def _slice(graph, equation, x):
    (x,) = graph.wholes(equation, [x])
    params = equation.params
    return graph.slice(
        x, params["start_indices"], params["limit_indices"], params["strides"]
    )


@primitive("split")
def _split(graph, equation, x):
    (x,) = graph.wholes(equation, [x])
    sizes = Value.of(np.array(equation.params["sizes"], np.int64))
    parts = [(out.aval.shape, x.dtype) for out in equation.outvars]
    return graph.ops("Split", [x, sizes], parts, axis=int(equation.params["axis"]))


@primitive("rev")
def _rev(graph, equation, x):
    """By constant indices: not every runtime takes slices backward."""
    (x,) = graph.wholes(equation, [x])
    for axis in map(int, equation.params["dimensions"]):
        if graph.times(x.shape[axis]) is not None:
            raise unknown("the reverse of an open batch")
        backward = Value.of(np.arange(x.shape[axis])[::-1].astype(np.int64))
        x = graph.op("Gather", [x, backward], x.shape, x.dtype, axis=axis)
    return x


@primitive("gather")
def _gather(graph, equation, x, index):
    """Of constant indices: a block of the array, or rows of one axis."""
    x = graph.whole(x, equation.invars[0].aval.shape)
    params, (out,) = equation.params, equation.outvars
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    axes = numbers.start_index_map
    if index.array is None or numbers.operand_batching_dims:
        raise unknown("a gather by computed indices")
    places = np.broadcast_to(index.array, equation.invars[1].aval.shape)
    last = [x.shape[axis] - sizes[axis] for axis in axes]
    if any(map(graph.is_open, [last])) or (places < 0).any() or (places > last).any():
        raise unknown("a gather beyond its array")
    if places.ndim == 1:
        starts = [0] * x.ndim
        for axis, start in zip(axes, places, strict=True):
            starts[axis] = int(start)
        limits = [
            s if is_number(a, 0) else a + s for a, s in zip(starts, sizes, strict=True)
        ]
        return graph.reshape(graph.slice(x, starts, limits), out.aval.shape)
    first, last = axes[0], axes[-1] + 1
    rest = (i for i in range(x.ndim) if i not in axes)
    many = places.ndim - 1
    if (
        tuple(axes) != tuple(range(first, last))
        or tuple(numbers.collapsed_slice_dims) != tuple(axes)
        or any(sizes[i] != x.shape[i] for i in rest)
        or tuple(numbers.offset_dims)
        != (*range(first), *range(first + many, out.aval.ndim))
    ):
        raise unknown("a gather of parts of rows")
    sides = x.shape[first:last]
    taken = np.ravel_multi_index(tuple(np.moveaxis(places, -1, 0)), sides)
    x = graph.reshape(x, (*x.shape[:first], math.prod(sides), *x.shape[last:]))
    taken = Value.of(taken.astype(np.int64))
    return graph.op("Gather", [x, taken], out.aval.shape, x.dtype, axis=int(first))


# Sums and products

REDUCTIONS = {
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_sum": "ReduceSum",
    "reduce_or": "ReduceMax",
    "reduce_and": "ReduceMin",
}


@primitive(*REDUCTIONS)
def _reduce(graph, equation, x):
    (x,) = graph.wholes(equation, [x])
    kind = REDUCTIONS[equation.primitive.name]
    return graph.reduce(kind, x, equation.params["axes"])


@primitive("argmax", "argmin")
def _arg(graph, equation, x):
    (x,), (out,) = graph.wholes(equation, [x]), equation.outvars
    (axis,) = equation.params["axes"]
    kind = {"argmax": "ArgMax", "argmin": "ArgMin"}[equation.primitive.name]
    found = graph.op(kind, [x], out.aval.shape, np.int64, axis=int(axis), keepdims=0)
    return graph.cast(found, out.aval.dtype)


@primitive("dot_general")
def _dot_general(graph, equation, a, b):
    (a, b), (out,) = graph.wholes(equation, [a, b]), equation.outvars
    (inner_a, inner_b), (batch_a, batch_b) = equation.params["dimension_numbers"]
    a, b = (graph.cast(x, out.aval.dtype) for x in (a, b))
    free_a = [i for i in range(a.ndim) if i not in (*inner_a, *batch_a)]
    free_b = [i for i in range(b.ndim) if i not in (*inner_b, *batch_b)]
    a = graph.transpose(a, (*batch_a, *free_a, *inner_a))
    b = graph.transpose(b, (*batch_b, *inner_b, *free_b))
    batch, many = len(batch_a), len(inner_a)
    inner = math.prod(b.shape[batch : batch + many])
    if batch or len(free_b) != 1 or many != 1:
        rows = math.prod(a.shape[batch : batch + len(free_a)])
        columns = math.prod(b.shape[batch + many :])
        a = graph.reshape(a, (*a.shape[:batch], rows, inner))
        b = graph.reshape(b, (*b.shape[:batch], inner, columns))
    shape = (*a.shape[:-1], b.shape[-1])
    found = graph.op("MatMul", [a, b], shape, out.aval.dtype)
    return graph.reshape(found, out.aval.shape)


@primitive("conv_general_dilated")
def _conv(graph, equation, x, kernel):
    (x, kernel), (out,) = graph.wholes(equation, [x, kernel]), equation.outvars
    params = equation.params
    numbers, groups = params["dimension_numbers"], params["batch_group_count"]
    if any(side != 1 for side in params["lhs_dilation"]) or groups != 1:
        raise unknown("a transposed convolution")
    if any(min(pair) < 0 for pair in params["padding"]):
        raise unknown("a convolution with negative padding")
    x = graph.transpose(x, numbers.lhs_spec)
    kernel = graph.transpose(kernel, numbers.rhs_spec)
    low, high = zip(*params["padding"], strict=True)
    shape = [out.aval.shape[i] for i in numbers.out_spec]
    found = graph.op(
        "Conv",
        [x, kernel],
        shape,
        out.aval.dtype,
        strides=tuple(params["window_strides"]),
        pads=(*low, *high),
        dilations=tuple(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return graph.transpose(found, np.argsort(numbers.out_spec))


# Loops


@primitive("scan")
def _scan(graph, equation, *values):
    """Its steps one after the other: an ONNX loop is slow, and not everywhere."""
    params = equation.params
    values, body, each = graph.wholes(equation, values), params["jaxpr"], []
    # What is taken apart or stacked, the last of them, has a side more outside.
    carried = _alike(equation.outvars, body.jaxpr.outvars)
    whole = _alike(equation.invars, body.jaxpr.invars)
    fixed, carry = values[: whole - carried], values[whole - carried : whole]
    given = values[whole:]
    if params["reverse"]:
        raise unknown("a backward scan")
    for step in range(params["length"]):
        own = [_at(graph, x, step) for x in given]
        found = graph.walk(body, [*fixed, *carry, *own])
        carry = found[:carried]
        each.append(found[carried:])
    stacked = []
    for column, out in zip(
        zip(*each, strict=True), equation.outvars[carried:], strict=True
    ):
        shape = out.aval.shape
        rows = [graph.reshape(v, (1, *shape[1:])) for v in column]
        stacked.append(graph.op("Concat", rows, shape, out.aval.dtype, axis=0))
    return [*carry, *stacked]


def _alike(outside, inside):
    """How many have the same shape outside of a loop and in its body."""
    pairs = zip(outside, inside, strict=True)
    return sum(one.aval.shape == other.aval.shape for one, other in pairs)


def _at(graph, x, step):
    starts = (step, *(0 for _ in x.shape[1:]))
    limits = (step + 1, *x.shape[1:])
    return graph.reshape(graph.slice(x, starts, limits), x.shape[1:])
