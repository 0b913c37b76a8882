"""An ONNX graph, made from what JAX traces (a jaxpr).

The table PRIMITIVES has a function for each of JAX's primitives that adds one or more
nodes. NODES has one for each function that common.nodes marks as a single node. What
depends on no input is computed here, and becomes a constant. Arrays are not broadcast
until something needs all of an array, because ONNX's operators broadcast, too.
"""

import collections
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.extend import core
from jax.numpy import broadcast_shapes

from imagepiece_jax.common import nodes
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.layers import QUICK

if TYPE_CHECKING:
    from onnx import GraphProto

SHORT_AXIS = 16  # axes up to this length, as of heads, are summed by `_sum_of_parts`


def stored_dtype(dtype) -> np.dtype:
    """The dtype in a graph for a dtype of JAX: all integers but uint8 are int64.

    TopK, ArgMax and Gather need int64, and so no casts are needed between them.
    """
    dtype = np.dtype(dtype)
    if dtype.kind in "iu" and dtype != np.uint8:
        return np.dtype(np.int64)
    return dtype


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor of the graph, or a constant that is not in the graph yet."""

    # sides are ints, or multiples of the open batch; a 1 may stand for a broadcast side
    shape: tuple
    dtype: np.dtype  # a result of `stored_dtype`
    name: str | None = None  # name in the graph; None: a constant
    array: np.ndarray | None = None  # the value of a constant

    @classmethod
    def constant(cls, array, dtype=None):
        """A constant, from an array, a number or a list of numbers."""
        array = np.asarray(array, dtype)
        array = np.asarray(array, stored_dtype(array.dtype), order="C")
        return cls(array.shape, array.dtype, array=array)

    @property
    def ndim(self):
        return len(self.shape)


class Graph:
    """An ONNX graph under construction: its nodes and constants.

    A node that is equal to an earlier one is not added again.

    images: the input, whose first side may be open (a dimension of jax.export)
    """

    def __init__(self, images: Value):
        self.images = images
        self.nodes = []
        self.constants = {}
        self._outputs = {}  # {a node's kind, operands and attributes: its Values}
        self._count = {}  # {kind of a node: number of names that it has}
        # {name of a Value: (kind, operands and attributes of the node that makes it)}
        self._made = collections.defaultdict(lambda: (None, (), {}))
        # {name of a Value: what it is}, by which NODES choose shorter programs:
        #   ("rows", array, starts, limits, strides): a slice of whole rows of an array
        #   ("order", tokens): the rank of each token; `tokens` are sorted by it
        #   ("before" or "from", tokens, limit): whether a rank is below `limit`, or not
        #   ("kept", keep): the indices among the tokens that are kept
        #   ("attended", query, key bias, weights): keys, with their attention weights
        self.notes = collections.defaultdict(lambda: (None,))

    # Nodes

    def op(self, kind, inputs: Sequence, shape, dtype, **attributes):
        """Add a node with one output; return its Value.

        inputs: Values and arrays
        """
        return self.ops(kind, inputs, [(shape, dtype)], **attributes)[0]

    def ops(self, kind, inputs, results, **attributes):
        """Add a node; return the Values of its outputs.

        results: (shape, dtype) of each output
        """
        from onnx import helper

        inputs = [_as_value(each) for each in inputs]
        names = tuple(map(self.name_of, inputs))
        options = sorted((name, str(value)) for name, value in attributes.items())
        key = (kind, names, tuple(options))
        if key in self._outputs:
            return self._outputs[key]
        values = []
        for shape, dtype in results:
            name = self._fresh(kind)
            values.append(Value(tuple(shape), stored_dtype(dtype), name))
        outputs = [value.name for value in values]
        node = helper.make_node(kind, names, outputs, outputs[0], **attributes)
        self.nodes.append(node)
        self._outputs[key] = values
        self._made[outputs[0]] = (kind, inputs, attributes)
        return values

    def name_of(self, value: Value, name: str | None = None) -> str:
        """The name of a Value. A constant becomes an initializer, equal ones the same.

        name: name of a new initializer; None: a number
        """
        if value.array is None:
            return value.name
        array = value.array
        key = (array.dtype.str, array.shape, hashlib.sha256(array).digest())
        if key not in self.constants:
            name = name or self._fresh("constant")
            self.constants[key] = (name, array)
        return self.constants[key][0]

    def finished(self, outputs: Mapping[str, Value]) -> "GraphProto":
        """The ONNX graph of {name: output}, with all nodes that outputs depend on."""
        from onnx import helper, numpy_helper

        outputs = self._distinct(outputs)
        names = {value.name: name for name, value in outputs.items()}
        live = {*names}
        needed = []
        for node in reversed(self.nodes):
            if live & {*node.output}:
                needed.append(node)
                live |= {*node.input}
                for field in (node.input, node.output):
                    field[:] = [names.get(name, name) for name in field]

        def info(name, value):
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            sides = [str(s) if is_open(s) else int(s) for s in value.shape]
            return helper.make_tensor_value_info(name, kind, sides)

        constants = []
        for name, array in self.constants.values():
            if name in live:
                constants.append(numpy_helper.from_array(array, name))
        return helper.make_graph(
            nodes=needed[::-1],
            name="imagepiece_jax",
            inputs=[info(self.images.name, self.images)],
            outputs=[info(name, output) for name, output in outputs.items()],
            initializer=constants,
        )

    def _distinct(self, outputs):
        """{name: output} in which no Value has two names, by adding copies."""
        from onnx import helper

        distinct = {}
        seen = set()
        for name, value in outputs.items():
            if value.name in seen:
                copy = self._fresh("Identity")
                node = helper.make_node("Identity", [value.name], [copy], copy)
                self.nodes.append(node)
                value = dataclasses.replace(value, name=copy)
            seen.add(value.name)
            distinct[name] = value
        return distinct

    def _fresh(self, kind):
        """A new name, such as "MatMul_3"."""
        number = self._count.get(kind, 0)
        self._count[kind] = number + 1
        return f"{kind}_{number}"

    # Shapes

    def reshape(self, value, shape):
        """`value` with another shape, in which at most one side is open."""
        shape = tuple(shape)
        kind, operands, _ = self._made[value.name]
        if kind == "Reshape":  # the second of two in a row is enough
            value = operands[0]
        if value.shape == shape:
            return value
        if value.array is not None:
            return Value.constant(value.array.reshape(shape))
        sides = np.array([-1 if is_open(side) else side for side in shape], np.int64)
        return self.op("Reshape", [value, sides], shape, value.dtype)

    def transpose(self, value, order):
        """`value` with its axes in another order."""
        value, before = self.untransposed(value)
        order = tuple(before[i] for i in order)  # two in a row become one
        if order == tuple(range(value.ndim)):
            return value
        if value.array is not None:
            return Value.constant(value.array.transpose(order))
        shape = tuple(value.shape[i] for i in order)
        return self.op("Transpose", [value], shape, value.dtype, perm=order)

    def untransposed(self, value):
        """(the Value of which `value` is a transpose, the order of its axes).

        A Value that is not a transpose is returned itself, with its axes in order.
        """
        kind, operands, attributes = self._made[value.name]
        if kind != "Transpose":
            return value, tuple(range(value.ndim))
        return operands[0], attributes["perm"]

    def slice(self, value, starts, limits, strides=None):
        """value[starts[0]:limits[0]:strides[0], ..]."""
        strides = strides or (1,) * value.ndim
        chosen = []
        shape = list(value.shape)
        each = zip(starts, limits, strides, strict=True)
        for axis, (start, limit, stride) in enumerate(each):
            if (start, limit, stride) == (0, shape[axis], 1):
                continue
            shape[axis] = math.ceil((limit - start) / stride)
            chosen.append((start, limit, axis, stride))
        if not chosen:
            return value
        columns = list(zip(*chosen, strict=True))
        out = self.op("Slice", [value, *columns], shape, value.dtype)
        _, _, axes, _ = columns
        if value.ndim - 1 not in axes:
            self.notes[out.name] = ("rows", value, starts, limits, strides)
        return out

    def expand(self, value, shape):
        """`value` broadcast to a shape."""
        shape = tuple(shape)
        if value.shape == shape:
            return value
        if value.array is not None and not any(map(is_open, shape)):
            return Value.constant(np.broadcast_to(value.array, shape))
        return self.op("Expand", [value, self._sides(shape)], shape, value.dtype)

    def output(self, value, shape):
        """`value` as an output of the graph: broadcast, and made by a node."""
        value = self.expand(value, shape)
        if value.array is None:
            return value
        return self.op("Identity", [value], shape, value.dtype)

    def expanded(self, equation, values):
        """The first operands of an equation, broadcast to the shapes that JAX says."""
        shapes = _shapes(equation.invars)
        return [self.expand(v, s) for v, s in zip(values, shapes, strict=False)]

    def _sides(self, shape):
        """A shape as an int64 tensor; open sides are multiples of the batch."""
        if not any(map(is_open, shape)):
            return np.array(shape, np.int64)
        batch = self.op("Shape", [self.images], (1,), np.int64, start=0, end=1)
        images = self.images.shape[0]
        parts = []
        for side in shape:
            if not is_open(side):
                parts.append([side])
            elif side == images:
                parts.append(batch)
            else:
                times = [int(side // images)]
                parts.append(self.op("Mul", [batch, times], (1,), np.int64))
        return self.op("Concat", parts, (len(shape),), np.int64, axis=0)

    def elementwise(self, kind, *inputs, dtype=None, **attributes):
        """Add a node that broadcasts its inputs; return its Value.

        A node of one transposed Value and constants is added before the transpose. So
        the transposes between several convolutions come together and cancel.

        inputs: Values, and numbers of their dtype
        """
        like = next(each.dtype for each in inputs if isinstance(each, Value))
        inputs = [_as_value(each, like) for each in inputs]
        shape = broadcast_shapes(*[value.shape for value in inputs])
        if dtype is None:
            dtype = inputs[0].dtype
        value, *others = sorted(inputs, key=lambda value: value.array is not None)
        source, order = self.untransposed(value)
        constant = all(other.array is not None for other in others)
        if source is not value and constant and source.ndim == len(shape):
            back = np.argsort(order)
            before = []
            for each in inputs:
                before.append(source if each is value else _permuted(each, back))
            out = self.elementwise(kind, *before, dtype=dtype, **attributes)
            return self.transpose(out, order)
        return self.op(kind, inputs, shape, dtype, **attributes)

    def cast(self, value, dtype):
        """`value` in another dtype."""
        from onnx import helper

        dtype = stored_dtype(dtype)
        if value.dtype == dtype:
            return value
        if value.array is not None:
            return Value.constant(value.array.astype(dtype))
        before, operands, _ = self._made[value.name]
        if before == "Cast" and operands[0].dtype.kind == "b":  # one is enough
            value = operands[0]
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        return self.op("Cast", [value], value.shape, dtype, to=kind)

    def reduce(self, kind, value, axes, keep=False):
        """Add a reduction such as ReduceSum over some axes; return its Value.

        Truth values are reduced as 0 and 1, and integers, which are below 2^24, as
        float32: OpenVINO 2026.4 reduces integers of only some images of a batch.
        """
        if value.dtype.kind in "bi":
            wide = self.cast(value, np.float32)
            return self.cast(self.reduce(kind, wide, axes, keep), value.dtype)
        axes = [int(axis) % value.ndim for axis in axes]
        kept_shape = list(value.shape)
        for axis in axes:
            kept_shape[axis] = 1
        rest = [side for i, side in enumerate(value.shape) if i not in axes]
        if kind == "ReduceSum" and len(axes) == 1 and axes[0] < value.ndim - 1:
            if value.shape[axes[0]] in range(2, SHORT_AXIS + 1):
                total = self._sum_of_parts(value, *axes, kept_shape)
                return total if keep else self.reshape(total, rest)
        shape = kept_shape if keep else rest
        return self.op(kind, [value, axes], shape, value.dtype, keepdims=int(keep))

    def _sum_of_parts(self, value, axis, shape):
        """ReduceSum over a short axis by Split and Sum, which OpenVINO does faster."""
        count = value.shape[axis]
        parts = [(shape, value.dtype)] * count
        parts = self.ops("Split", [value], parts, axis=axis, num_outputs=count)
        return self.op("Sum", parts, shape, value.dtype)

    # Equations

    def walk(self, closed, inputs: Sequence[Value]) -> list[Value]:
        """Add all equations of a jaxpr, closed or not; return its outputs' Values."""
        jaxpr = getattr(closed, "jaxpr", closed)
        constants = map(Value.constant, getattr(closed, "consts", ()))
        values = dict(zip(jaxpr.constvars, constants, strict=True))
        values.update(zip(jaxpr.invars, inputs, strict=True))

        def value(atom):
            if isinstance(atom, core.Literal):
                return Value.constant(np.asarray(atom.val, atom.aval.dtype))
            return values[atom]

        for equation in _needed(jaxpr):
            results = self._equation(equation, [*map(value, equation.invars)])
            values.update(zip(equation.outvars, results, strict=True))
        return [*map(value, jaxpr.outvars)]

    def _equation(self, equation, values):
        """Add an equation; return the Values of its outputs."""
        name = equation.primitive.name
        params = equation.params
        if name == nodes.PRIMITIVE:
            values = self.expanded(equation, values)
            name, args, options = nodes.call(equation, values)
            return _listed(NODES[name](self, *args, **options))
        if name in CALLS:
            return self.walk(params[CALLS[name]], values)
        shapes = _shapes([*equation.invars, *equation.outvars])
        fixed = not any(map(is_open, itertools.chain(*shapes)))
        if fixed and all(v.array is not None for v in values):
            return self._folded(equation, values)
        if name not in PRIMITIVES:
            raise no_operator(name)
        return _listed(PRIMITIVES[name](self, equation, *values))

    def _folded(self, equation, values):
        """The outputs of an equation whose operands are constants, as constants."""
        name = equation.primitive.name
        outputs = equation.outvars
        values = self.expanded(equation, values)
        if name in MOVES:
            moved = PRIMITIVES[name](self, equation, *values)
            return [self.expand(moved, outputs[0].aval.shape)]
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


def _as_value(given, dtype=None):
    """A Value itself, or the constant of a number or an array."""
    if isinstance(given, Value):
        return given
    return Value.constant(given, dtype)


def _listed(results):
    """Results as a list: of one result or of several."""
    return results if isinstance(results, list | tuple) else [results]


def _shapes(atoms):
    return [atom.aval.shape for atom in atoms]


def _needed(jaxpr):
    """The equations of a jaxpr on which its outputs depend."""
    live = set(map(id, jaxpr.outvars))
    needed = []
    for equation in reversed(jaxpr.eqns):
        if live & set(map(id, equation.outvars)):
            needed.append(equation)
            live |= set(map(id, equation.invars))
    return needed[::-1]


def no_operator(name):
    """The error for a computation that has no ONNX operator."""
    return InputError(f"the model computes {name}, which has no ONNX operator here")


def is_open(side):
    """Whether a side of a shape is the open batch, or a multiple of it."""
    return not isinstance(side, int | np.integer)


def _permuted(constant, order):
    """A constant, transposed so that it broadcasts with a transposed array.

    order: of the axes, as `jnp.transpose` takes it
    """
    array = constant.array
    if array.ndim == 0:
        return constant
    sides = (1,) * (len(order) - array.ndim) + array.shape
    return Value.constant(array.reshape(sides).transpose(order))


# {primitive that calls a function: its parameter with the function's jaxpr}
CALLS = dict.fromkeys(("jit", "closed_call"), "jaxpr")
CALLS |= dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), "call_jaxpr")
# {JAX's primitive: function (graph, equation, Values of its operands) -> the Value of
# its output, or those of several outputs}
PRIMITIVES = {}


def primitive(*names, expand=False):
    """Decorator that enters a function in PRIMITIVES under these names.

    expand: whether its operands are broadcast first
    """

    def enter(fn):
        def expanded(graph, equation, *values):
            return fn(graph, equation, *graph.expanded(equation, values))

        for name in names:
            PRIMITIVES[name] = expanded if expand else fn
        return fn

    return enter


# Elementwise

OPERATORS = (
    "abs add and cos div erf exp log max min mul neg not or pow sign sin sqrt sub tanh"
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


# Equations of constants that JAX does not compute, as it would compile a program for
# each of them and each shape. MOVES are computed by their entries in PRIMITIVES, and
# BY_NUMPY by NumPy, with the same bits.
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

# {comparison of ranks with a number: whether it is true for the tokens before that
# rank, or for those from it on}, which NODES read as notes.
SIDES = {"lt": "before", "ge": "from"}
OPPOSITE = {"before": "from", "from": "before"}


@primitive(*OPERATORS)
def _operator(graph, equation, *values):
    """Add an operator; of truth values max is `or`, and min is `and`."""
    name = equation.primitive.name
    truths = values[0].dtype.kind == "b"
    if truths:
        name = {"max": "or", "min": "and"}.get(name, name)
    elif name in ("and", "not", "or"):
        raise no_operator(f"{name} of integers")
    out = graph.elementwise(OPERATORS[name], *values)
    kind, *facts = graph.notes[values[0].name]
    if name == "not" and kind in OPPOSITE:
        graph.notes[out.name] = (OPPOSITE[kind], *facts)
    return out


@primitive(*COMPARISONS)
def _comparison(graph, equation, *values):
    """Add a comparison; that of an order with a number is noted by SIDES."""
    operands = []
    for value in values:
        if value.dtype.kind == "b":
            value = graph.cast(value, np.int32)
        operands.append(value)
    name = equation.primitive.name
    out = graph.elementwise(COMPARISONS[name], *operands, dtype=bool)
    rank, limit = operands
    kind, *facts = graph.notes[rank.name]
    if kind == "order" and name in SIDES and limit.array is not None:
        if limit.array.size == 1:
            graph.notes[out.name] = (SIDES[name], *facts, int(limit.array.item()))
    return out


# {primitive that takes several operators: function (Graph.elementwise, operands)}
FORMULAS = {
    "erfc": lambda op, x: op("Sub", 1, op("Erf", x)),
    "expm1": lambda op, x: op("Sub", op("Exp", x), 1),
    "log1p": lambda op, x: op("Log", op("Add", x, 1)),
    "ne": lambda op, a, b: op("Not", op("Equal", a, b, dtype=bool)),
    "rem": lambda op, a, b: op("Mod", a, b, fmod=1),
    "rsqrt": lambda op, x: op("Reciprocal", op("Sqrt", x)),
    "square": lambda op, x: op("Mul", x, x),
}


@primitive(*FORMULAS)
def _formula(graph, equation, *values):
    return FORMULAS[equation.primitive.name](graph.elementwise, *values)


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
    return graph.op("Where", [which, yes, no], shape, yes.dtype)


@primitive("convert_element_type")
def _convert(graph, equation, x):
    return graph.cast(x, equation.params["new_dtype"])


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
    (out,) = equation.outvars
    axis = int(equation.params["dimension"])
    return graph.op("Concat", values, out.aval.shape, out.aval.dtype, axis=axis)


@primitive("stack", expand=True)
def _stack(graph, equation, *values):
    (out,) = equation.outvars
    axis = int(equation.params["axis"])
    parts = []
    for value in values:
        sides = (*value.shape[:axis], 1, *value.shape[axis:])
        parts.append(graph.reshape(value, sides))
    return graph.op("Concat", parts, out.aval.shape, out.aval.dtype, axis=axis)


@primitive("pad", expand=True)
def _pad(graph, equation, x, value):
    (out,) = equation.outvars
    low, high, inner = zip(*equation.params["padding_config"], strict=True)
    if any(inner) or min(low) < 0 or min(high) < 0:
        raise no_operator("padding between or negative")
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
    return graph.slice(
        x, params["start_indices"], params["limit_indices"], params["strides"]
    )


@primitive("split", expand=True)
def _split(graph, equation, x):
    inputs = [x, equation.params["sizes"]]
    parts = [(out.aval.shape, x.dtype) for out in equation.outvars]
    return graph.ops("Split", inputs, parts, axis=int(equation.params["axis"]))


@primitive("rev", expand=True)
def _rev(graph, equation, x):
    """A Gather of constant indices, as not every runtime can slice backward."""
    for axis in map(int, equation.params["dimensions"]):
        if is_open(x.shape[axis]):
            raise no_operator("the reverse of an open batch")
        backward = np.arange(x.shape[axis])[::-1]
        x = graph.op("Gather", [x, backward], x.shape, x.dtype, axis=axis)
    return x


@primitive("gather")
def _gather(graph, equation, x, index):
    """A gather with constant indices: a block of the array, or rows of one axis."""
    x = graph.expand(x, equation.invars[0].aval.shape)
    params = equation.params
    (out,) = equation.outvars
    numbers = params["dimension_numbers"]
    sizes = params["slice_sizes"]
    axes = numbers.start_index_map
    if index.array is None or numbers.operand_batching_dims:
        raise no_operator("a gather by computed indices")
    indices = np.broadcast_to(index.array, equation.invars[1].aval.shape)
    highest = [x.shape[axis] - sizes[axis] for axis in axes]
    if any(map(is_open, highest)) or (indices < 0).any() or (indices > highest).any():
        raise no_operator("a gather beyond its array")
    if indices.ndim == 1:  # a block
        starts = [0] * x.ndim
        for axis, start in zip(axes, indices, strict=True):
            starts[axis] = int(start)
        limits = np.add(starts, sizes).tolist()
        block = graph.slice(x, starts, limits)
        return graph.reshape(block, out.aval.shape)
    # Rows at indices along neighboring axes, which become one axis for ONNX's Gather.
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
    (out,) = equation.outvars
    kind = {"argmax": "ArgMax", "argmin": "ArgMin"}[equation.primitive.name]
    index = graph.op(kind, [x], out.aval.shape, np.int64, axis=int(axis), keepdims=0)
    return graph.cast(index, out.aval.dtype)


@primitive("dot_general", expand=True)
def _dot_general(graph, equation, a, b):
    """A MatMul of [batch.., rows, inner] and [batch.., inner, columns]."""
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
    """The axes of a Value that are in none of the groups."""
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
    """The loop's steps, one after the other: ONNX's loops are slow, or missing.

    values: those that are the same in all steps, then those that steps change
    """
    body = equation.params["jaxpr"]
    carried = len(equation.outvars)
    # A step that takes or makes a part of an array has other shapes than the loop.
    of_loop = _shapes([*equation.invars, *equation.outvars])
    of_step = _shapes([*body.jaxpr.invars, *body.jaxpr.outvars])
    if of_loop != of_step:
        raise no_operator("a loop over the parts of an array")
    fixed = values[:-carried]
    carry = values[-carried:]
    for _ in range(equation.params["length"]):
        carry = graph.walk(body, [*fixed, *carry])
    return carry


# {name of a function that is marked as one node: function (graph, its arguments)}. What
# is computed is in the docstring of the marked function.
NODES = {}


def translates(fn):
    """Decorator that enters a function in NODES."""
    NODES[fn.__name__] = fn
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
def gelu(graph, x, form="exact"):
    if form == "quick":
        share = graph.elementwise("Sigmoid", graph.elementwise("Mul", x, QUICK))
        return graph.elementwise("Mul", x, share)
    kind = {"exact": "none", "tanh": "tanh"}[form]
    return graph.elementwise("Gelu", x, approximate=kind)


@translates
def attend(graph, query, key, value, key_bias=None, *, backend="xla", length=None):
    weights = _weights(graph, query, key, key_bias)
    graph.notes[key.name] = ("attended", query, key_bias, weights)
    value = graph.transpose(value, (0, 2, 1, 3))
    shape = (*weights.shape[:3], value.shape[3])
    out = graph.op("MatMul", [weights, value], shape, value.dtype)
    return graph.transpose(out, (0, 2, 1, 3))


def _weights(graph, query, key, key_bias):
    """Attention weights. [B, N, H, d], [B, M, H, d], [B, M] -> [B, H, N, M]."""
    query = graph.elementwise("Mul", query, query.shape[-1] ** -0.5)
    query = graph.transpose(query, (0, 2, 1, 3))
    key = graph.transpose(key, (0, 2, 3, 1))
    shape = (*query.shape[:3], key.shape[3])
    logits = graph.op("MatMul", [query, key], shape, query.dtype)
    if key_bias is not None:
        batch, tokens = key_bias.shape
        bias = graph.cast(key_bias, query.dtype)
        bias = graph.reshape(bias, (batch, 1, 1, tokens))
        logits = graph.elementwise("Add", logits, bias)
    return graph.op("Softmax", [logits], shape, query.dtype, axis=-1)


@translates
def class_attention(graph, query, key, key_bias=None):
    """A row of the attention of all tokens, where that is in the graph already."""
    query = graph.cast(query, np.float32)
    key = graph.cast(key, np.float32)
    batch, heads, width = query.shape
    row = graph.reshape(query, (batch, 1, heads, width))
    weights = None
    kind, *facts = graph.notes[key.name]
    if kind == "attended":  # by all tokens, the class token first
        queries, bias, all_weights = facts
        first = graph.slice(queries, (0, 0, 0, 0), (batch, 1, heads, width))
        if first == row and bias == key_bias:
            limits = (batch, heads, 1, all_weights.shape[3])
            weights = graph.slice(all_weights, (0, 0, 0, 0), limits)
    if weights is None:
        weights = _weights(graph, row, key, key_bias)
    mean = graph.reduce("ReduceMean", weights, (1,))
    return graph.reshape(mean, (batch, key.shape[1]))


@translates
def log_sum_exp(graph, logits):
    return graph.reduce("ReduceLogSumExp", logits, (1,))


@translates
def unit(graph, x, eps=1e-6):
    kind, *facts = graph.notes[x.name]
    if kind == "rows":  # a slice: the whole array, in a node that its slices share
        full, *bounds = facts
        return graph.slice(unit(graph, full, eps), *bounds)
    x = graph.cast(x, np.float32)
    squares = graph.reduce("ReduceSumSquare", x, (-1,), keep=True)
    length = graph.elementwise("Sqrt", graph.elementwise("Add", squares, eps))
    return graph.elementwise("Div", x, length)


# Order and choice


def _top(graph, x, count, largest):
    """(values, int64 indices) of the `count` largest or smallest of each row."""
    shape = (*x.shape[:-1], count)
    results = [(shape, x.dtype), (shape, np.int64)]
    options = {"axis": -1, "largest": int(largest), "sorted": 1}
    return graph.ops("TopK", [x, [count]], results, **options)


@translates
def rank(graph, score):
    n = score.shape[-1]
    _, tokens = _top(graph, score, n, largest=True)
    _, ranks = _top(graph, tokens, n, largest=False)
    ranks = graph.cast(ranks, np.int32)
    graph.notes[ranks.name] = ("order", tokens)
    return ranks


@translates
def count_before(graph, keep):
    keep = graph.cast(keep, np.int32)
    return graph.op("CumSum", [keep, 1], keep.shape, np.int32, exclusive=1)


@translates
def place_among(graph, keep):
    before = count_before(graph, keep)
    n = keep.shape[1]
    index = graph.op("Where", [keep, before, -n], keep.shape, np.int32)
    graph.notes[index.name] = ("kept", keep)
    return index


@translates
def invert(graph, position, wanted):
    kind, *facts = graph.notes[position.name]
    if kind == "kept" and isinstance(wanted, int):
        return _kept_tokens(graph, *facts, wanted)
    indices = Value.constant(np.arange(position.shape[1])[None])
    return pick(graph, position, wanted, indices)[0]


@translates
def pick(graph, position, wanted, *values):
    """The values of the tokens at wanted positions, as by `ops.pick`.

    Where `position` is noted to be a rank (`Graph.notes`), a Gather replaces the
    comparison of all pairs.

    wanted: a number m for the positions 0..m-1, or an array of positions
    """
    n = position.shape[1]
    if isinstance(wanted, int):
        wanted = Value.constant(np.arange(wanted))
    kind, *facts = graph.notes[position.name]
    if kind == "order":
        (tokens,) = facts
        ranks = graph.cast(wanted, np.int64)
        shape = (position.shape[0], wanted.shape[-1])
        index = graph.op("Gather", [tokens, ranks], shape, np.int64, axis=1)
        return [gather_rows(graph, value, index) for value in values]
    wanted = graph.reshape(wanted, (1, wanted.shape[-1], 1))
    position = graph.reshape(position, (position.shape[0], 1, n))
    is_wanted = graph.elementwise("Equal", position, wanted, dtype=bool)

    def picked(value):
        value = graph.reshape(value, (value.shape[0], 1, n))
        value = graph.cast(value, np.float32)
        operands = [is_wanted, value, np.float32(0)]
        taken = graph.op("Where", operands, is_wanted.shape, np.float32)
        total = graph.reduce("ReduceSum", taken, (2,))
        return graph.cast(total, np.int32)

    return [picked(value) for value in values]


def _kept_tokens(graph, keep, length):
    """Indices [B, length] of the first kept tokens; 0 where there are fewer."""
    n = keep.shape[1]
    kind, *facts = graph.notes[keep.name]
    if kind in ("before", "from"):
        tokens, limit = facts
        if kind == "before":
            first_rank = 0
            end_rank = limit
        else:
            first_rank = limit
            end_rank = n
        if end_rank - first_rank == length:
            kept = graph.slice(tokens, (0, first_rank), (keep.shape[0], end_rank))
            return _top(graph, kept, length, largest=False)[0]
    index = graph.op("Where", [keep, np.arange(n)[None], n], keep.shape, np.int64)
    lowest, _ = _top(graph, index, length, largest=False)
    behind = graph.elementwise("Equal", lowest, n, dtype=bool)
    return graph.op("Where", [behind, 0, lowest], lowest.shape, np.int64)


@translates
def sums(graph, values, axis):
    return [graph.reduce("ReduceSum", value, (axis,)) for value in values]


@translates
def find_partners(graph, similarity, tokens):
    batch, a, t = similarity.shape
    # TopK gives both at once; OpenVINO 2026.4 takes six times as long for ArgMax.
    best, index = _top(graph, similarity, 1, largest=True)
    best = graph.reshape(best, (batch, a))
    index = graph.reshape(index, (batch, a))
    if tokens.array is not None:
        (tokens,) = tokens.array
        row = graph.op("Gather", [tokens, index], (batch, a), tokens.dtype)
        return [best, row]
    tokens = graph.expand(tokens, (batch, t))
    return [best, gather_rows(graph, tokens, index)]


@translates
def gather_rows(graph, x, index):
    if x.array is not None and np.array_equal(x.array, [range(x.shape[1])]):
        return graph.cast(index, x.dtype)  # a row of 0, 1, 2, ..
    shape = (*index.shape, *x.shape[2:])
    index = graph.cast(index, np.int64)
    if x.ndim == index.ndim == 2:
        return graph.op("GatherElements", [x, index], shape, x.dtype, axis=1)
    index = graph.reshape(index, (*index.shape, 1))
    return graph.op("GatherND", [x, index], shape, x.dtype, batch_dims=1)


@translates
def _move_by_index(graph, x, weight, total, index, dest, mean):
    """Rows that are kept, plus a matrix product of the rows that are absorbed.

    Arguments are those of `reduction.moves._move_by_index`.
    """
    n_out = index.keep.shape[1]
    absorbs = index.absorbed.shape[1]
    batch = x.shape[0]
    prefix = x.shape[1] - dest.shape[1]
    row = _after_prefix(graph, np.arange(prefix), _shifted(graph, index.keep, prefix))
    kept = gather_rows(graph, x, row)
    plain = weight is None and total is None
    if plain or (mean and not absorbs):
        return kept

    def shares(tokens, slots=None):
        weights = 1.0
        if weight is not None:
            weights = gather_rows(graph, weight, tokens)
        if total is None:
            return weights
        sums = total
        if slots is not None:
            sums = gather_rows(graph, total, slots)
        return graph.elementwise("Div", weights, sums)

    factor = _after_prefix(graph, np.ones(prefix), shares(index.keep))
    factor = graph.reshape(factor, (*factor.shape, 1))
    kept = graph.elementwise("Mul", kept, graph.cast(factor, x.dtype))
    if not absorbs:
        return kept
    share = shares(index.absorbed, index.target)
    moved = gather_rows(graph, x, _shifted(graph, index.absorbed, prefix))
    share = graph.reshape(share, (*share.shape, 1))
    moved = graph.elementwise("Mul", moved, graph.cast(share, x.dtype))
    target = graph.reshape(index.target, (batch, 1, index.target.shape[1]))
    slot = np.arange(-prefix, n_out)[None, :, None]
    joins = graph.elementwise("Equal", slot, target, dtype=bool)
    joins = graph.cast(joins, x.dtype)
    added = graph.op("MatMul", [joins, moved], kept.shape, x.dtype)
    return graph.elementwise("Add", kept, added)


def _after_prefix(graph, front, values):
    """Values of the prefix, the same for all images, followed by those of image tokens.

    [p], [B, n] -> [B, p + n]
    """
    if not len(front):
        return values
    batch, count = values.shape
    rows = graph.expand(Value.constant(front[None], values.dtype), (batch, len(front)))
    shape = (batch, len(front) + count)
    return graph.op("Concat", [rows, values], shape, values.dtype, axis=1)


def _shifted(graph, index, by):
    """An index plus a number."""
    return graph.elementwise("Add", graph.cast(index, np.int64), by)
