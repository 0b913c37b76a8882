"""ONNX nodes for a jaxpr, JAX's traced program.

PRIMITIVES maps JAX's primitives to functions that add nodes. An equation
whose inputs are all constants is computed during the export, and stored as a constant.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.extend import core
from jax.numpy import broadcast_shapes

from imagepiece_jax.common import nodes
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters.onnx_graph import Graph, Value, is_open
from imagepiece_jax.exporters.onnx_ops import OPS, first_best


def walk(graph: Graph, closed, inputs: Sequence[Value]) -> list[Value]:
    """Add a jaxpr's needed equations, closed or not; return its outputs' Values."""
    jaxpr = getattr(closed, "jaxpr", closed)
    constants = map(Value.constant, getattr(closed, "consts", ()))
    values = dict(zip(jaxpr.constvars, constants, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def value(atom):
        if isinstance(atom, core.Literal):
            return Value.constant(np.asarray(atom.val, atom.aval.dtype))
        return values[atom]

    for equation in _needed(jaxpr):
        results = _equation(graph, equation, [*map(value, equation.invars)])
        values.update(zip(equation.outvars, results, strict=True))
    return [*map(value, jaxpr.outvars)]


def _equation(graph, equation, values):
    name = equation.primitive.name
    params = equation.params
    if name == nodes.COMPOSITE_PRIMITIVE:
        values = _expanded(graph, equation, values)
        name, args, options = nodes.marked_call(equation, values)
        results = OPS[name](graph, *args, **options)
        if results is None:  # no operators for these arguments
            body = params.get("call_jaxpr") or params["jaxpr"]  # since 0.12, before
            return walk(graph, body, values)
        return _listed(results)
    if name in CALLS:
        return walk(graph, params[CALLS[name]], values)
    shapes = _shapes([*equation.invars, *equation.outvars])
    fixed = not any(map(is_open, itertools.chain(*shapes)))
    fixed &= name != "dim_as_value"  # the open batch, as a number
    if fixed and all(v.array is not None for v in values):
        return _folded(graph, equation, values)
    if name not in PRIMITIVES:
        raise no_operator(name)
    return _listed(PRIMITIVES[name](graph, equation, *values))


def _folded(graph, equation, values):
    """Compute an equation of constants and return its outputs as constants."""
    name = equation.primitive.name
    outputs = equation.outvars
    values = _expanded(graph, equation, values)
    if name in MOVES:
        moved = PRIMITIVES[name](graph, equation, *values)
        return [graph.expand(moved, outputs[0].aval.shape)]
    arrays = []
    for value, atom in zip(values, equation.invars, strict=True):
        arrays.append(np.asarray(value.array, atom.aval.dtype))
    if name in BY_NUMPY:
        results = BY_NUMPY[name](*arrays)
    else:
        with jax.ensure_compile_time_eval():
            arrays = map(jax.numpy.asarray, arrays)
            results = equation.primitive.bind(*arrays, **equation.params)
    return [Value.constant(np.asarray(result)) for result in _listed(results)]


def _expanded(graph, equation, values):
    """Broadcast an equation's operands to their shapes in JAX."""
    shapes = _shapes(equation.invars)
    return [graph.expand(v, s) for v, s in zip(values, shapes, strict=False)]


def _listed(results):
    """Put a single result in a list."""
    return results if isinstance(results, list | tuple) else [results]


def _shapes(atoms):
    return [atom.aval.shape for atom in atoms]


def _needed(jaxpr):
    """List the equations on which a jaxpr's outputs depend."""
    live = set(map(id, jaxpr.outvars))
    needed = []
    for equation in reversed(jaxpr.eqns):
        if live & set(map(id, equation.outvars)):
            needed.append(equation)
            live |= set(map(id, equation.invars))
    return needed[::-1]


def no_operator(name):
    """InputError for a computation without an ONNX operator."""
    return InputError(f"the model computes {name}, which has no ONNX operator here")


# {primitive that calls a function: name of its parameter with the function's jaxpr}
CALLS = dict.fromkeys(("jit", "closed_call"), "jaxpr")
CALLS |= dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), "call_jaxpr")
# {JAX's primitive: function (graph, equation, *operands) -> the output's Value, or a
# list of several outputs' Values}
PRIMITIVES = {}


def primitive(*names, expand=False):
    """Decorator that enters a function in PRIMITIVES under these names.

    expand: broadcast its operands first
    """

    def enter(fn):
        def expanded(graph, equation, *values):
            return fn(graph, equation, *_expanded(graph, equation, values))

        for name in names:
            PRIMITIVES[name] = expanded if expand else fn
        return fn

    return enter


# Elementwise

OPERATORS = (
    "abs add and cos div erf exp log max min mul neg not or pow sin sqrt sub tanh"
)
OPERATORS = {name: name.capitalize() for name in OPERATORS.split()}
OPERATORS |= {"logistic": "Sigmoid"}
COMPARISONS = {
    "eq": "Equal",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "lt": "Less",
}


# For an equation of constants JAX would compile a program, and another program for
# every shape. So MOVES are computed by their functions in PRIMITIVES, and BY_NUMPY by
# NumPy, with the same bits.
MOVES = {"reshape", "squeeze", "broadcast_in_dim", "convert_element_type", "iota"}
BY_NUMPY = {
    "add": np.add,
    "eq": np.equal,
    "ge": np.greater_equal,
    "gt": np.greater,
    "lt": np.less,
    "mul": np.multiply,
    "ne": np.not_equal,
    "select_n": lambda which, no, yes: np.where(which, yes, no),
    "sign": np.sign,
    "sub": np.subtract,
}


@primitive(*OPERATORS)
def _operator(graph, equation, *values):
    """Add an operator. For booleans, max is `or`, and min is `and`."""
    name = equation.primitive.name
    kind = equation.invars[0].aval.dtype.kind
    if kind == "b":
        name = {"max": "or", "min": "and"}.get(name, name)
    elif name in ("and", "not", "or"):
        raise no_operator(f"{name} of integers")
    if name == "or":  # WebGPU has no Or
        neither = [graph.elementwise("Not", value) for value in values]
        return graph.elementwise("Not", graph.elementwise("And", *neither))
    if name == "div" and kind in "iu":
        return _whole_quotient(graph, *values)
    return graph.elementwise(OPERATORS[name], *values)


def _whole_quotient(graph, a, b):
    """The integer part of a / b, toward zero, for whole numbers."""
    op = graph.elementwise
    # Half a unit more: a GPU's quotient may be a little below the exact number.
    size = op("Floor", op("Div", op("Add", op("Abs", a), 0.5), op("Abs", b)))
    is_negative = op("Less", op("Mul", a, b), 0, dtype=bool)
    operands = [is_negative, op("Neg", size), size]
    return graph.op("Where", operands, size.shape, size.dtype)


@primitive(*COMPARISONS)
def _comparison(graph, equation, *values):
    name = equation.primitive.name
    values = map(graph.as_number, values)
    return graph.elementwise(COMPARISONS[name], *values, dtype=bool)


# {primitive written with other operators: function (Graph.elementwise, *operands)}
FORMULAS = {
    "erfc": lambda op, x: op("Sub", 1, op("Erf", x)),
    "expm1": lambda op, x: op("Sub", op("Exp", x), 1),
    "log1p": lambda op, x: op("Log", op("Add", x, 1)),
    "ne": lambda op, a, b: op("Not", op("Equal", a, b, dtype=bool)),
    "rsqrt": lambda op, x: op("Reciprocal", op("Sqrt", x)),
    "square": lambda op, x: op("Mul", x, x),
}


@primitive(*FORMULAS)
def _formula(graph, equation, *values):
    values = map(graph.as_number, values)
    return FORMULAS[equation.primitive.name](graph.elementwise, *values)


@primitive("rem")
def _rem(graph, equation, a, b):
    if equation.invars[0].aval.dtype.kind not in "iu":
        return graph.elementwise("Mod", a, b, fmod=1)
    whole = graph.elementwise("Mul", b, _whole_quotient(graph, a, b))
    return graph.elementwise("Sub", a, whole)


@primitive("sign")
def _sign(graph, equation, x):  # WebGPU has no Sign
    above = graph.elementwise("Greater", x, 0, dtype=bool)
    below = graph.elementwise("Less", x, 0, dtype=bool)
    return graph.elementwise(
        "Sub", *(graph.cast(each, x.dtype) for each in (above, below))
    )


@primitive("integer_pow")
def _integer_pow(graph, equation, x):
    power = equation.params["y"]
    if power == 2:
        return graph.elementwise("Mul", x, x)
    return graph.elementwise("Pow", x, power)


@primitive("select_n")
def _select(graph, equation, which, *cases):
    if len(cases) != 2 or which.dtype.kind != "b":
        raise no_operator("a choice among more than two")
    no, yes = cases
    shape = broadcast_shapes(which.shape, no.shape, yes.shape)
    dtype = yes.dtype
    if dtype.kind == "b":
        no = graph.cast(no, np.float32)
        yes = graph.cast(yes, np.float32)
    chosen = graph.op("Where", [which, yes, no], shape, yes.dtype)
    return graph.cast(chosen, dtype)


@primitive("convert_element_type")
def _convert(graph, equation, x):
    dtype = np.dtype(equation.params["new_dtype"])
    is_float = jax.numpy.issubdtype(equation.invars[0].aval.dtype, jax.numpy.floating)
    if is_float and dtype.kind in "iu":  # toward zero
        is_negative = graph.elementwise("Less", x, 0, dtype=bool)
        limits = [graph.elementwise(kind, x) for kind in ("Ceil", "Floor")]
        x = graph.op("Where", [is_negative, *limits], x.shape, x.dtype)
    return graph.cast(x, dtype)


@primitive("copy", "stop_gradient", "optimization_barrier")
def _same(graph, equation, *values):
    return values


# Shapes


@primitive("broadcast_in_dim")
def _broadcast_in_dim(graph, equation, x, *_):
    sides = [1] * len(equation.params["shape"])
    axes = equation.params["broadcast_dimensions"]
    for axis, side in zip(axes, x.shape, strict=True):
        sides[axis] = side
    return graph.reshape(x, sides)


@primitive("reshape", "squeeze", expand=True)
def _reshape(graph, equation, x, *_):
    return graph.reshape(x, equation.outvars[0].aval.shape)


@primitive("transpose")
def _transpose(graph, equation, x):
    return graph.transpose(x, equation.params["permutation"])


@primitive("concatenate", expand=True)
def _concatenate(graph, equation, *values):
    return graph.concat(values, int(equation.params["dimension"]))


@primitive("stack", expand=True)
def _stack(graph, equation, *values):
    axis = int(equation.params["axis"])
    parts = []
    for value in values:
        sides = (*value.shape[:axis], 1, *value.shape[axis:])
        parts.append(graph.reshape(value, sides))
    return graph.concat(parts, axis)


@primitive("pad", expand=True)
def _pad(graph, equation, x, value):
    (out,) = equation.outvars
    low, high, inner = zip(*equation.params["padding_config"], strict=True)
    if any(inner) or min(low) < 0 or min(high) < 0:
        raise no_operator("padding between or negative")
    if not any(low + high):
        return x
    return graph.op("Pad", [x, low + high, value], out.aval.shape, x.dtype)


@primitive("iota")
def _iota(graph, equation):
    shape = equation.params["shape"]
    axis = equation.params["dimension"]
    if is_open(shape[axis]):
        raise no_operator("the number of each image of an open batch")
    row = np.arange(shape[axis], dtype=equation.params["dtype"])
    others = [i for i in range(len(shape)) if i != axis]
    return Value.constant(np.expand_dims(row, others))


@primitive("slice", expand=True)
def _slice(graph, equation, x):
    params = equation.params
    strides = params["strides"] or (1,) * x.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    for axis, (start, limit, stride) in enumerate(bounds):
        x = graph.slice(x, axis, start, limit, stride)
    return x


@primitive("split", expand=True)
def _split(graph, equation, x):
    inputs = [x, equation.params["sizes"]]
    parts = [(out.aval.shape, x.dtype) for out in equation.outvars]
    return graph.ops("Split", inputs, parts, axis=int(equation.params["axis"]))


@primitive("rev", expand=True)
def _rev(graph, equation, x):
    """Reverse axes by a Gather with constant indices."""
    # A Slice would need a negative step: not every runtime can slice backward.
    for axis in map(int, equation.params["dimensions"]):
        if is_open(x.shape[axis]):
            raise no_operator("the reverse of an open batch")
        backward = np.arange(x.shape[axis])[::-1]
        x = graph.op("Gather", [x, backward], x.shape, x.dtype, axis=axis)
    return x


@primitive("gather")
def _gather(graph, equation, x, index):
    """Gather by constant indices: a block of the array, or rows of one axis."""
    x = graph.expand(x, equation.invars[0].aval.shape)
    params = equation.params
    (out,) = equation.outvars
    numbers = params["dimension_numbers"]
    sizes = params["slice_sizes"]
    axes = numbers.start_index_map
    if index.array is None or numbers.operand_batching_dims:
        raise no_operator("a gather by computed indices")
    indices = np.asarray(index.array, np.int64)
    indices = np.broadcast_to(indices, equation.invars[1].aval.shape)
    highest = [x.shape[axis] - sizes[axis] for axis in axes]
    if any(map(is_open, highest)) or (indices < 0).any() or (indices > highest).any():
        raise no_operator("a gather beyond its array")
    if indices.ndim == 1:  # a block
        starts = dict(zip(axes, map(int, indices), strict=True))
        for axis, size in enumerate(sizes):
            start = starts.get(axis, 0)
            x = graph.slice(x, axis, start, start + size)
        return graph.reshape(x, out.aval.shape)
    # Rows along neighboring axes: ONNX's Gather has a single axis, so they become one.
    first = axes[0]
    end = axes[-1] + 1
    neighbors = tuple(range(first, end))
    row_shape = list(x.shape)
    row_shape[first:end] = [1] * (end - first)
    end_in_output = first + indices.ndim - 1
    other_axes = (*range(first), *range(end_in_output, out.aval.ndim))
    takes_whole_rows = (
        tuple(axes) == neighbors
        and tuple(numbers.collapsed_slice_dims) == neighbors
        and list(sizes) == row_shape
        and tuple(numbers.offset_dims) == other_axes
    )
    if not takes_whole_rows:
        raise no_operator("a gather of parts of rows")
    sides = x.shape[first:end]
    taken = np.ravel_multi_index(tuple(np.moveaxis(indices, -1, 0)), sides)
    x = graph.reshape(x, (*x.shape[:first], math.prod(sides), *x.shape[end:]))
    x, start = graph.unsliced(x, first)
    taken = taken + start
    return graph.op("Gather", [x, taken], out.aval.shape, x.dtype, axis=int(first))


# Sums and products

REDUCTIONS = {
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_sum": "ReduceSum",
    "reduce_or": "ReduceMax",
    "reduce_and": "ReduceMin",
}


@primitive(*REDUCTIONS, expand=True)
def _reduce(graph, equation, x):
    kind = REDUCTIONS[equation.primitive.name]
    return graph.reduce(kind, x, equation.params["axes"])


@primitive("argmax", "argmin", expand=True)
def _arg(graph, equation, x):
    (axis,) = equation.params["axes"]
    kind = {"argmax": "Max", "argmin": "Min"}[equation.primitive.name]
    _, index = first_best(graph, x, int(axis), kind)
    return index


@primitive("dot_general", expand=True)
def _dot_general(graph, equation, a, b):
    """MatMul of [batch.., rows, inner] and [batch.., inner, columns]."""
    (out,) = equation.outvars
    dtype = out.aval.dtype
    (inner_a, inner_b), (batch_a, batch_b) = equation.params["dimension_numbers"]
    a = graph.cast(a, dtype)
    b = graph.cast(b, dtype)
    free_a = _other_axes(a, inner_a, batch_a)
    free_b = _other_axes(b, inner_b, batch_b)
    a = graph.transpose(a, (*batch_a, *free_a, *inner_a))
    b = graph.transpose(b, (*batch_b, *inner_b, *free_b))
    if batch_a or len(free_b) != 1 or len(inner_a) != 1:
        first = len(batch_a)
        batch = a.shape[:first]
        rows = math.prod(a.shape[first : first + len(free_a)])
        inner = math.prod(a.shape[first + len(free_a) :])
        columns = math.prod(b.shape[first + len(inner_b) :])
        a = graph.reshape(a, (*batch, rows, inner))
        b = graph.reshape(b, (*b.shape[:first], inner, columns))
    shape = (*a.shape[:-1], b.shape[-1])
    product = graph.op("MatMul", [a, b], shape, dtype)
    return graph.reshape(product, out.aval.shape)


def _other_axes(value, *groups):
    listed = {*itertools.chain(*groups)}
    return [axis for axis in range(value.ndim) if axis not in listed]


@primitive("conv_general_dilated", expand=True)
def _conv(graph, equation, x, kernel):
    (out,) = equation.outvars
    params = equation.params
    numbers = params["dimension_numbers"]
    groups = params["batch_group_count"]
    low, high = zip(*params["padding"], strict=True)
    if {*params["lhs_dilation"], groups} != {1} or min(low + high) < 0:
        raise no_operator("a transposed convolution, or one with negative padding")
    x = graph.transpose(x, numbers.lhs_spec)
    kernel = graph.transpose(kernel, numbers.rhs_spec)
    options = {
        "strides": tuple(params["window_strides"]),
        "pads": (*low, *high),
        "dilations": tuple(params["rhs_dilation"]),
        "group": params["feature_group_count"],
    }
    shape = [out.aval.shape[i] for i in numbers.out_spec]
    convolved = graph.op("Conv", [x, kernel], shape, out.aval.dtype, **options)
    return graph.transpose(convolved, np.argsort(numbers.out_spec))


# Loops


@primitive("scan", expand=True)
def _scan(graph, equation, *values):
    """Unroll a loop.

    values: operands equal in all steps, then operands changed by the steps
    """
    # ONNX's loops are slow, or missing in a runtime.
    body = equation.params["jaxpr"]
    carried = len(equation.outvars)
    # A step that reads or writes part of an array has shapes different from the loop's.
    of_loop = _shapes([*equation.invars, *equation.outvars])
    of_step = _shapes([*body.jaxpr.invars, *body.jaxpr.outvars])
    if of_loop != of_step:
        raise no_operator("a loop over the parts of an array")
    fixed = values[:-carried]
    carry = values[-carried:]
    for _ in range(equation.params["length"]):
        carry = walk(graph, body, [*fixed, *carry])
    return carry
