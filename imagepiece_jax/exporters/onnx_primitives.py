"""ONNX nodes for a jaxpr, JAX's traced program.

PRIMITIVE_TRANSLATIONS maps JAX's primitives to functions that add nodes. An equation
whose inputs are all constants is computed during the export, and stored as a constant.
"""

import itertools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.numpy import broadcast_shapes

from imagepiece_jax.common import nodes
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters import onnx_kernels
from imagepiece_jax.exporters.onnx_graph import Graph, Value, Values, is_open_side

# (graph, equation, *operands) -> the output's Value, or several outputs' Values
Translation = Callable[..., Value | Values]


def add_equations(graph: Graph, jaxpr: ClosedJaxpr | Jaxpr, inputs: Values) -> Values:
    """Add an open or closed jaxpr's needed equations; return its outputs' Values."""
    open_jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    # An open jaxpr has no constants of its own.
    constants = map(Value.constant, getattr(jaxpr, "consts", ()))
    value_of_atom = dict(zip(open_jaxpr.constvars, constants, strict=True))
    value_of_atom.update(zip(open_jaxpr.invars, inputs, strict=True))
    for equation in _needed_equations(open_jaxpr):
        operands = _find_values(value_of_atom, equation.invars)
        results = _add_equation(graph, equation, operands)
        value_of_atom.update(zip(equation.outvars, results, strict=True))
    return _find_values(value_of_atom, open_jaxpr.outvars)


def _find_values(value_of_atom, atoms):
    """Values of an equation's operands, or of a jaxpr's outputs."""
    values = []
    for atom in atoms:
        if isinstance(atom, Literal):
            dtype = atom.aval.dtype  # pyrefly: ignore[missing-attribute]
            values.append(Value.constant(np.asarray(atom.val, dtype)))
        else:
            values.append(value_of_atom[atom])
    return values


def _add_equation(graph, equation, operands):
    """Add one equation's nodes, or its constants; return its outputs' Values."""
    primitive_name = equation.primitive.name
    params = equation.params
    if primitive_name == nodes.COMPOSITE_PRIMITIVE:
        operands = _broadcast_operands(graph, equation, operands)
        function_name, args, options = nodes.read_marked_call(equation, operands)
        results = getattr(onnx_kernels, f"add_{function_name}")(graph, *args, **options)
        if results is None:  # no operators for these arguments
            # "call_jaxpr" since JAX 0.12, "jaxpr" before.
            jaxpr = params.get("call_jaxpr") or params["jaxpr"]
            return add_equations(graph, jaxpr, operands)
        return _as_list(results)
    if primitive_name in CALL_PRIMITIVES:
        return add_equations(graph, params[CALL_PRIMITIVES[primitive_name]], operands)
    atom_shapes = _atom_shapes([*equation.invars, *equation.outvars])
    is_fixed = not any(map(is_open_side, itertools.chain(*atom_shapes)))
    is_fixed &= primitive_name != "dim_as_value"  # the open batch, as a number
    if is_fixed and all(operand.array is not None for operand in operands):
        return _fold_equation(graph, equation, operands)
    if primitive_name not in PRIMITIVE_TRANSLATIONS:
        raise no_operator_error(primitive_name)
    return _as_list(PRIMITIVE_TRANSLATIONS[primitive_name](graph, equation, *operands))


def _fold_equation(graph, equation, operands):
    """Compute an equation of constants and return its outputs as constants."""
    name = equation.primitive.name
    operands = _broadcast_operands(graph, equation, operands)
    if name in MOVING_PRIMITIVES:
        return _as_list(PRIMITIVE_TRANSLATIONS[name](graph, equation, *operands))
    arrays = []
    for operand, atom in zip(operands, equation.invars, strict=True):
        arrays.append(np.asarray(operand.array, atom.aval.dtype))
    if name in NUMPY_PRIMITIVES:
        results = NUMPY_PRIMITIVES[name](*arrays)
    else:
        with jax.ensure_compile_time_eval():
            jax_arrays = map(jax.numpy.asarray, arrays)
            results = equation.primitive.bind(*jax_arrays, **equation.params)
    return [Value.constant(np.asarray(result)) for result in _as_list(results)]


def _broadcast_operands(graph, equation, operands):
    """Broadcast an equation's operands to their shapes in JAX."""
    shapes = _atom_shapes(equation.invars)
    return [*map(graph.expand, operands, shapes)]


def _as_list(results):
    """Put a single result in a list."""
    return results if isinstance(results, list | tuple) else [results]


def _atom_shapes(atoms):
    return [atom.aval.shape for atom in atoms]


def _needed_equations(jaxpr):
    """List the equations on which a jaxpr's outputs depend."""
    needed_ids = set(map(id, jaxpr.outvars))  # a Literal has no hash
    needed_equations = []
    for equation in reversed(jaxpr.eqns):
        if needed_ids & set(map(id, equation.outvars)):
            needed_equations.append(equation)
            needed_ids |= set(map(id, equation.invars))
    return needed_equations[::-1]


def no_operator_error(name: str) -> InputError:
    """InputError for a computation without an ONNX operator."""
    return InputError(f"the model computes {name}, which has no ONNX operator here")


# {primitive that calls a function: name of its parameter with the function's jaxpr}
CALL_PRIMITIVES = dict.fromkeys(("jit", "closed_call"), "jaxpr")
CALL_PRIMITIVES |= dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), "call_jaxpr")
PRIMITIVE_TRANSLATIONS: dict[str, Translation] = {}


def translates_primitive(*names: str, expand: bool = False) -> Callable:
    """Decorator that enters a function in PRIMITIVE_TRANSLATIONS under these names.

    expand: broadcast its operands first
    """

    def enter(add_nodes):
        def translate_expanded(graph, equation, *values):
            operands = _broadcast_operands(graph, equation, values)
            return add_nodes(graph, equation, *operands)

        translation = translate_expanded if expand else add_nodes
        PRIMITIVE_TRANSLATIONS.update(dict.fromkeys(names, translation))
        return add_nodes

    return enter


# Elementwise

_SAME_NAMES = "abs add and cos div erf exp log max min mul neg not or pow sin sqrt sub"
SIMPLE_OPERATORS = {name: name.capitalize() for name in _SAME_NAMES.split()}
SIMPLE_OPERATORS |= {"logistic": "Sigmoid", "tanh": "Tanh"}

# For an equation of constants JAX would compile a program, and another program for
# every shape. So functions of PRIMITIVE_TRANSLATIONS compute MOVING_PRIMITIVES, and
# NumPy computes NUMPY_PRIMITIVES, with the same bits.
MOVING_PRIMITIVES = {"reshape", "squeeze", "broadcast_in_dim", "iota"}
MOVING_PRIMITIVES |= {"convert_element_type"}
NUMPY_PRIMITIVES = {
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


@translates_primitive(*SIMPLE_OPERATORS)
def _add_operator(graph, equation, *values):
    """Add an operator. For booleans, max is `or`, and min is `and`."""
    name = equation.primitive.name
    dtype_kind = equation.invars[0].aval.dtype.kind
    if dtype_kind == "b":
        name = {"max": "or", "min": "and"}.get(name, name)
    elif name in ("and", "not", "or"):
        raise no_operator_error(f"{name} of integers")
    if name == "or":  # WebGPU has no Or
        negations = [graph.add_elementwise("Not", value) for value in values]
        return graph.add_elementwise("Not", graph.add_elementwise("And", *negations))
    if name == "div" and dtype_kind in "iu":
        return _whole_quotient(graph, *values)
    return graph.add_elementwise(SIMPLE_OPERATORS[name], *values)


def _whole_quotient(graph, dividend, divisor):
    """The integer part of dividend / divisor, toward zero, for whole numbers."""
    elementwise = graph.add_elementwise
    # Half a unit more: a GPU's quotient may be a little below the exact number.
    raised_dividend = elementwise("Add", elementwise("Abs", dividend), 0.5)
    quotient = elementwise("Div", raised_dividend, elementwise("Abs", divisor))
    magnitude = elementwise("Floor", quotient)
    product = elementwise("Mul", dividend, divisor)
    is_negative = elementwise("Less", product, 0, dtype=bool)
    operands = [is_negative, elementwise("Neg", magnitude), magnitude]
    return graph.add_node("Where", operands, magnitude.shape, magnitude.dtype)


# {primitive written with other operators: function (Graph.add_elementwise, *operands)}
PRIMITIVE_FORMULAS = {
    "eq": lambda op, a, b: op("Equal", a, b, dtype=bool),
    "erfc": lambda op, x: op("Sub", 1, op("Erf", x)),
    "expm1": lambda op, x: op("Sub", op("Exp", x), 1),
    "ge": lambda op, a, b: op("GreaterOrEqual", a, b, dtype=bool),
    "gt": lambda op, a, b: op("Greater", a, b, dtype=bool),
    "le": lambda op, a, b: op("LessOrEqual", a, b, dtype=bool),
    "log1p": lambda op, x: op("Log", op("Add", x, 1)),
    "lt": lambda op, a, b: op("Less", a, b, dtype=bool),
    "ne": lambda op, a, b: op("Not", op("Equal", a, b, dtype=bool)),
    "rsqrt": lambda op, x: op("Reciprocal", op("Sqrt", x)),
    "square": lambda op, x: op("Mul", x, x),
}


@translates_primitive(*PRIMITIVE_FORMULAS)
def _add_formula(graph, equation, *values):
    if equation.primitive.name == "ne" and values[0] is values[1]:
        return Value.constant(False)  # only NaN differs from itself: graphs read none
    numbers = map(graph.as_number, values)
    return PRIMITIVE_FORMULAS[equation.primitive.name](graph.add_elementwise, *numbers)


@translates_primitive("integer_pow")
def _add_integer_pow(graph, equation, value):
    power = equation.params["y"]
    if power == 2:
        return graph.add_elementwise("Mul", value, value)
    return graph.add_elementwise("Pow", value, power)


@translates_primitive("select_n")
def _add_select(graph, equation, mask, *cases):
    """Choose the second case where the mask is true, else the first."""
    if len(cases) != 2 or mask.dtype.kind != "b":
        raise no_operator_error("a choice among more than two")
    if mask.array is not None and not mask.array.any():
        return cases[0]
    shape = broadcast_shapes(mask.shape, *[case.shape for case in cases])
    no, yes = map(graph.as_number, cases)  # WebGPU chooses among numbers only
    chosen_value = graph.add_node("Where", [mask, yes, no], shape, yes.dtype)
    return graph.cast(chosen_value, cases[1].dtype)


@translates_primitive("convert_element_type")
def _add_conversion(graph, equation, value):
    """Convert a dtype; floats become integers by rounding toward zero."""
    dtype = np.dtype(equation.params["new_dtype"])
    old_dtype = equation.invars[0].aval.dtype
    if jax.numpy.issubdtype(old_dtype, jax.numpy.floating) and dtype.kind in "iu":
        is_negative = graph.add_elementwise("Less", value, 0, dtype=bool)
        rounded_up = graph.add_elementwise("Ceil", value)
        rounded_down = graph.add_elementwise("Floor", value)
        operands = [is_negative, rounded_up, rounded_down]
        value = graph.add_node("Where", operands, value.shape, value.dtype)
    return graph.cast(value, dtype)


@translates_primitive("copy", "stop_gradient", "optimization_barrier")
def _pass_operands(graph, equation, *values):
    return values


# Shapes


@translates_primitive("broadcast_in_dim")
def _add_broadcast(graph, equation, value, *_):
    sides = [1] * len(equation.params["shape"])
    axes = equation.params["broadcast_dimensions"]
    # From the last axis on: a Value may lack sides of 1 in front.
    for axis, side in zip(axes[::-1], value.shape[::-1], strict=False):
        sides[axis] = side
    # Operators broadcast to the left, so an axis in front needs no node.
    if _without_leading_ones(sides) == _without_leading_ones(value.shape):
        return value
    return graph.reshape(value, sides)


def _without_leading_ones(shape):
    return [*itertools.dropwhile(lambda side: side == 1, shape)]


@translates_primitive("reshape", "squeeze", expand=True)
def _add_reshape(graph, equation, value, *_):
    return graph.reshape(value, equation.outvars[0].aval.shape)


@translates_primitive("transpose", expand=True)
def _add_transpose(graph, equation, value):
    return graph.transpose(value, equation.params["permutation"])


@translates_primitive("concatenate", expand=True)
def _add_concatenation(graph, equation, *values):
    return graph.concat(values, int(equation.params["dimension"]))


@translates_primitive("stack", expand=True)
def _add_stack(graph, equation, *values):
    """Join Values along a new axis."""
    axis = int(equation.params["axis"])
    stacked_values = []
    for value in values:
        sides = (*value.shape[:axis], 1, *value.shape[axis:])
        stacked_values.append(graph.reshape(value, sides))
    return graph.concat(stacked_values, axis)


@translates_primitive("pad", expand=True)
def _add_padding(graph, equation, value, fill):
    """Pad the ends of axes: ONNX's Pad has no padding between elements."""
    shape = equation.outvars[0].aval.shape
    low, high, inner = zip(*equation.params["padding_config"], strict=True)
    if any(inner) or min(low) < 0 or min(high) < 0:
        raise no_operator_error("padding between or negative")
    if not any(low + high):
        return value
    bounds = low + high  # all starts, then all ends
    return graph.add_node("Pad", [value, bounds, fill], shape, value.dtype)


@translates_primitive("iota")
def _index_constant(graph, equation):
    """Make a constant that counts along one axis, with sides of 1 along others."""
    shape = equation.params["shape"]
    axis = equation.params["dimension"]
    if is_open_side(shape[axis]):
        raise no_operator_error("the number of each image of an open batch")
    indices = np.arange(shape[axis], dtype=equation.params["dtype"])
    other_axes = [other for other in range(len(shape)) if other != axis]
    return Value.constant(np.expand_dims(indices, other_axes))


@translates_primitive("slice", expand=True)
def _add_slice(graph, equation, value):
    params = equation.params
    strides = params["strides"] or (1,) * value.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    for axis, (start, limit, stride) in enumerate(bounds):
        value = graph.slice(value, axis, start, limit, stride)
    return value


@translates_primitive("split", expand=True)
def _add_split(graph, equation, value):
    inputs = [value, equation.params["sizes"]]
    shapes = _atom_shapes(equation.outvars)
    axis = int(equation.params["axis"])
    return graph.add_multi_output_node("Split", inputs, shapes, value.dtype, axis=axis)


@translates_primitive("rev", expand=True)
def _add_reversal(graph, equation, value):
    """Reverse axes by a Gather with constant indices."""
    # A Slice would need a negative step: not every runtime can slice backward.
    for axis in map(int, equation.params["dimensions"]):
        if is_open_side(value.shape[axis]):
            raise no_operator_error("the reverse of an open batch")
        operands = [value, np.arange(value.shape[axis])[::-1]]
        value = graph.add_node("Gather", operands, value.shape, value.dtype, axis=axis)
    return value


@translates_primitive("gather")
def _add_gather(graph, equation, value, index_value):
    """Gather by constant indices: a block of the array, or rows of one axis."""
    value = graph.expand(value, equation.invars[0].aval.shape)
    params = equation.params
    out_shape = equation.outvars[0].aval.shape
    dimensions = params["dimension_numbers"]
    slice_sizes = params["slice_sizes"]
    indexed_axes = dimensions.start_index_map
    if index_value.array is None or dimensions.operand_batching_dims:
        raise no_operator_error("a gather by computed indices")
    indices = np.asarray(index_value.array, np.int64)
    # [.., indexed axes], or [indexed axes] for a block
    indices = np.broadcast_to(indices, equation.invars[1].aval.shape)
    last_starts = [value.shape[axis] - slice_sizes[axis] for axis in indexed_axes]
    has_open_side = any(map(is_open_side, last_starts))
    if has_open_side or (indices < 0).any() or (indices > last_starts).any():
        raise no_operator_error("a gather beyond its array")
    if indices.ndim == 1:  # a block
        starts = dict(zip(indexed_axes, map(int, indices), strict=True))
        for axis, size in enumerate(slice_sizes):
            start = starts.get(axis, 0)
            value = graph.slice(value, axis, start, start + size)
        return graph.reshape(value, out_shape)
    # Rows along neighboring axes: ONNX's Gather has a single axis, so they become one.
    first_axis = indexed_axes[0]
    end_axis = indexed_axes[-1] + 1
    row_axes = tuple(range(first_axis, end_axis))
    row_shape = list(value.shape)
    row_shape[first_axis:end_axis] = [1] * (end_axis - first_axis)
    end_in_output = first_axis + indices.ndim - 1
    other_axes = (*range(first_axis), *range(end_in_output, len(out_shape)))
    takes_whole_rows = (
        tuple(indexed_axes) == row_axes
        and tuple(dimensions.collapsed_slice_dims) == row_axes
        and list(slice_sizes) == row_shape
        and tuple(dimensions.offset_dims) == other_axes
    )
    if not takes_whole_rows:
        raise no_operator_error("a gather of parts of rows")
    sides = value.shape[first_axis:end_axis]
    row_numbers = np.ravel_multi_index(tuple(np.moveaxis(indices, -1, 0)), sides)
    joined_shape = (
        *value.shape[:first_axis],
        math.prod(sides),
        *value.shape[end_axis:],
    )
    rows = graph.reshape(value, joined_shape)
    source, start = graph.source_and_start(rows, first_axis)
    operands = [source, row_numbers + start]
    options = {"axis": int(first_axis)}
    return graph.add_node("Gather", operands, out_shape, source.dtype, **options)


# Sums and products

REDUCTION_OPERATORS = {"reduce_max": "ReduceMax", "reduce_or": "ReduceMax"}
REDUCTION_OPERATORS |= {"reduce_min": "ReduceMin", "reduce_and": "ReduceMin"}
REDUCTION_OPERATORS |= {"reduce_sum": "ReduceSum"}


@translates_primitive(*REDUCTION_OPERATORS, expand=True)
def _add_reduction(graph, equation, value):
    kind = REDUCTION_OPERATORS[equation.primitive.name]
    return graph.add_reduction(kind, value, equation.params["axes"])


@translates_primitive("dot_general", expand=True)
def _add_dot_general(graph, equation, left, right):
    """MatMul of [batch.., rows, inner] and [batch.., inner, columns]."""
    out = equation.outvars[0].aval
    dtype = out.dtype
    dimensions = equation.params["dimension_numbers"]
    (inner_left, inner_right), (batch_left, batch_right) = dimensions
    left = graph.cast(left, dtype)
    right = graph.cast(right, dtype)
    free_left = _remaining_axes(left, inner_left, batch_left)
    free_right = _remaining_axes(right, inner_right, batch_right)
    left = graph.transpose(left, (*batch_left, *free_left, *inner_left))
    right = graph.transpose(right, (*batch_right, *inner_right, *free_right))
    # [.., inner] and [inner, columns] fit MatMul as they are.
    if batch_left or len(free_right) != 1 or len(inner_left) != 1:
        batch_ndim = len(batch_left)
        batch_sides = left.shape[:batch_ndim]
        num_rows = math.prod(left.shape[batch_ndim : batch_ndim + len(free_left)])
        num_inner = math.prod(left.shape[batch_ndim + len(free_left) :])
        num_columns = math.prod(right.shape[batch_ndim + len(inner_right) :])
        left = graph.reshape(left, (*batch_sides, num_rows, num_inner))
        right = graph.reshape(right, (*batch_sides, num_inner, num_columns))
    shape = (*left.shape[:-1], right.shape[-1])
    product = graph.add_node("MatMul", [left, right], shape, dtype)
    return graph.reshape(product, out.shape)


def _remaining_axes(value, *axis_groups):
    listed_axes = {*itertools.chain(*axis_groups)}
    return [axis for axis in range(value.ndim) if axis not in listed_axes]


@translates_primitive("conv_general_dilated", expand=True)
def _add_conv(graph, equation, value, kernel):
    """Convolve, with any order of the axes: ONNX has channels before the sides."""
    out = equation.outvars[0].aval
    params = equation.params
    dimensions = params["dimension_numbers"]
    batch_groups = params["batch_group_count"]
    low, high = zip(*params["padding"], strict=True)
    if {*params["lhs_dilation"], batch_groups} != {1} or min(low + high) < 0:
        raise no_operator_error("a transposed or cropped convolution")
    value = graph.transpose(value, dimensions.lhs_spec)
    kernel = graph.transpose(kernel, dimensions.rhs_spec)
    options = {
        "strides": tuple(params["window_strides"]),
        "pads": (*low, *high),
        "dilations": tuple(params["rhs_dilation"]),
        "group": params["feature_group_count"],
    }
    shape = [out.shape[axis] for axis in dimensions.out_spec]
    convolution = graph.add_node("Conv", [value, kernel], shape, out.dtype, **options)
    out_order = np.argsort(dimensions.out_spec)  # the inverse of out_spec
    return graph.transpose(convolution, out_order.tolist())


# Loops


@translates_primitive("scan", expand=True)
def _add_unrolled_loop(graph, equation, *values):
    """Unroll a loop.

    values: operands equal in all steps, then operands changed by the steps
    """
    # ONNX's loops are slow, or missing in a runtime.
    body = equation.params["jaxpr"]
    num_carried = len(equation.outvars)
    # A step that reads or writes part of an array has shapes different from the loop's.
    loop_shapes = _atom_shapes([*equation.invars, *equation.outvars])
    step_shapes = _atom_shapes([*body.jaxpr.invars, *body.jaxpr.outvars])
    if loop_shapes != step_shapes:
        raise no_operator_error("a loop over the parts of an array")
    fixed_values = values[:-num_carried]
    carried_values = values[-num_carried:]
    for _ in range(equation.params["length"]):
        carried_values = add_equations(graph, body, [*fixed_values, *carried_values])
    return carried_values
