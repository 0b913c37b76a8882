"""An ONNX graph from what JAX traces.

Each equation becomes a node or a few, by the tables of `onnx_primitives` and, for
functions marked as one node (common.nodes), of `onnx_nodes`. What depends on no input
is computed here and becomes a constant. Broadcasts are left to the operators, which
broadcast themselves, until something needs all of an array.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.extend import core

from imagepiece_jax.common import nodes
from imagepiece_jax.errors import InputError

OPSET = 20  # the first with Gelu
IR_VERSION = 10  # of ONNX files, of the time of that opset
HEADS = 16  # the longest axis that is summed part by part


def held(dtype) -> np.dtype:
    """What a graph has for a dtype of JAX: integers but pixels are int64.

    TopK, ArgMax and Gather have them so, and nothing between them needs a cast.
    """
    dtype = np.dtype(dtype)
    whole = dtype.kind in "iu" and dtype != np.uint8
    return np.dtype(np.int64) if whole else dtype


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor of the graph, or a constant that is none of it yet.

    shape: as in the graph, where a side of 1 may stand for one that JAX has broadcast;
    ints or multiples of the open batch. dtype: `held`.
    """

    shape: tuple
    dtype: np.dtype
    name: str | None = None
    array: np.ndarray | None = None

    @classmethod
    def of(cls, array):
        """A constant."""
        array = np.asarray(array, held(np.asarray(array).dtype), order="C")
        return cls(array.shape, array.dtype, array=array)

    @property
    def ndim(self):
        return len(self.shape)


class Graph:
    """Nodes and constants of one ONNX graph under construction.

    batch: the open number of images, a dimension of jax.export, None where it is fixed;
    images: the input, whose first side it is; primitives, functions: what translates
    them, by name. Nodes that repeat another are that one.
    """

    def __init__(self, batch, images: Value, primitives: Mapping, functions: Mapping):
        self.batch, self.images = batch, images
        self.primitives, self.functions = primitives, functions
        self.nodes, self.constants = [], {}
        self._made, self._count = {}, {}
        self._reshaped, self._transposed, self._truths = {}, {}, {}
        self.notes = {}  # what is known of a Value, by its name: see onnx_nodes

    # Nodes

    def op(self, kind, inputs: Sequence[Value | None], shape, dtype, **attributes):
        """The Value of a new node's only output."""
        return self.ops(kind, inputs, [(shape, dtype)], **attributes)[0]

    def ops(self, kind, inputs, results, **attributes):
        """The Values of a new node's outputs, each of (shape, dtype)."""
        from onnx import helper

        names = tuple("" if v is None else self.name_of(v) for v in inputs)
        key = kind, names, tuple(sorted((k, str(v)) for k, v in attributes.items()))
        if key in self._made:
            return self._made[key]
        values = [
            Value(tuple(shape), held(dtype), self._fresh(kind))
            for shape, dtype in results
        ]
        outputs = [value.name for value in values]
        self.nodes.append(
            helper.make_node(kind, names, outputs, outputs[0], **attributes)
        )
        self._made[key] = values
        return values

    def name_of(self, value: Value) -> str:
        """Name of a Value; a constant becomes an initializer."""
        if value.name is not None:
            return value.name
        return self._keep(value.array)

    def weight(self, name, array) -> Value:
        """A constant that is known by a name of its own."""
        value = Value.of(array)
        self._keep(value.array, name)
        return value

    def _keep(self, array, name=None):
        """Name of the initializer that holds `array`; equal ones are one."""
        key = _content(array)
        if key not in self.constants:
            self.constants[key] = name or self._fresh("constant"), array
        return self.constants[key][0]

    def prune(self, output: Value):
        """Leave out nodes and constants that `output` does not depend on."""
        live, kept = {output.name}, []
        for node in reversed(self.nodes):
            if live & set(node.output):
                kept.append(node)
                live |= set(node.input)
        self.nodes = kept[::-1]
        self.constants = {k: v for k, v in self.constants.items() if v[0] in live}

    def rename(self, value: Value, name):
        """Call the output of a node `name`, as an output of the graph."""
        for node in self.nodes:
            for field in (node.input, node.output):
                field[:] = [name if old == value.name else old for old in field]

    def _fresh(self, kind):
        number = self._count[kind] = self._count.get(kind, -1) + 1
        return f"{kind}_{number}"

    # Shapes

    def times(self, side) -> int | None:
        """How many times the open batch a side is; None: it is a number."""
        if isinstance(side, int | np.integer):
            return None
        return int(side // self.batch)

    def is_open(self, shape):
        """Whether some side is a multiple of the open batch."""
        return any(self.times(side) is not None for side in shape)

    def reshape(self, value, shape):
        """`value` as an array of `shape`, one of whose sides at most is open."""
        shape = tuple(shape)
        while value.name in self._reshaped:  # of two in a row the second is enough
            value = self._reshaped[value.name]
        if value.shape == shape:
            return value
        if value.array is not None:
            return Value.of(value.array.reshape(shape))
        sides = [-1 if self.times(side) is not None else int(side) for side in shape]
        target = Value.of(np.array(sides, np.int64))
        out = self.op("Reshape", [value, target], shape, value.dtype)
        self._reshaped[out.name] = value
        return out

    def transpose(self, value, order):
        order = tuple(map(int, order))
        if value.name in self._transposed:  # of two in a row one is enough, or none
            value, before = self._transposed[value.name]
            order = tuple(before[i] for i in order)
        if order == tuple(range(value.ndim)):
            return value
        if value.array is not None:
            return Value.of(value.array.transpose(order))
        shape = tuple(value.shape[i] for i in order)
        out = self.op("Transpose", [value], shape, value.dtype, perm=order)
        self._transposed[out.name] = value, order
        return out

    def slice(self, value, starts, limits, strides=None):
        """value[starts[0]:limits[0]:strides[0], ..]."""
        strides = strides or (1,) * value.ndim
        chosen, shape = [], list(value.shape)
        each = zip(starts, limits, strides, strict=True)
        for axis, (start, limit, stride) in enumerate(each):
            if is_number(start, 0) and limit == shape[axis] and stride == 1:
                continue
            shape[axis] = math.ceil((limit - start) / stride)
            chosen.append((start, limit, axis, stride))
        if not chosen:
            return value
        columns = list(zip(*chosen, strict=True))
        operands = [Value.of(np.array(column, np.int64)) for column in columns]
        out = self.op("Slice", [value, *operands], shape, value.dtype)
        if value.ndim - 1 not in columns[2]:
            self.notes[out.name] = "rows", value, starts, limits, strides
        return out

    def whole(self, value, shape):
        """`value` with all sides of `shape`, what was left to broadcasting done."""
        shape = tuple(shape)
        if value.shape == shape:
            return value
        if value.array is not None and not self.is_open(shape):
            return Value.of(np.broadcast_to(value.array, shape))
        return self.op("Expand", [value, self._sides(shape)], shape, value.dtype)

    def wholes(self, equation, values):
        """The first operands of an equation, as JAX has them. See `whole`."""
        shapes = [atom.aval.shape for atom in equation.invars]
        return [self.whole(v, s) for v, s in zip(values, shapes, strict=False)]

    def _sides(self, shape):
        """`shape` as int64 tensor."""
        if not self.is_open(shape):
            return Value.of(np.array(shape, np.int64))
        batch = self.op("Shape", [self.images], (1,), np.int64, start=0, end=1)
        parts = []
        for side in shape:
            times = self.times(side)
            if times is None:
                parts.append(Value.of(np.array([side], np.int64)))
            elif times == 1:
                parts.append(batch)
            else:
                factor = Value.of(np.array([times], np.int64))
                parts.append(self.op("Mul", [batch, factor], (1,), np.int64))
        return self.op("Concat", parts, (len(shape),), np.int64, axis=0)

    def elementwise(self, kind, inputs, dtype=None, **attributes):
        """A node that broadcasts its inputs; of one and constants, before a transpose.

        So the transposes around each of several convolutions meet, and cancel.
        """
        shape = broadcast(*(value.shape for value in inputs))
        dtype = inputs[0].dtype if dtype is None else dtype
        (value, *others) = sorted(inputs, key=lambda value: value.array is not None)
        source, order = self._transposed.get(value.name, (value, None))
        known = all(other.array is not None for other in others)
        if order and known and source.ndim == len(shape):
            back = np.argsort(order)
            inputs = [source if v is value else _permuted(v, back) for v in inputs]
            out = self.elementwise(kind, inputs, dtype, **attributes)
            return self.transpose(out, order)
        return self.op(kind, inputs, shape, dtype, **attributes)

    def cast(self, value, dtype):
        from onnx import helper

        dtype = held(dtype)
        if value.dtype == dtype:
            return value
        if value.array is not None:
            return Value.of(value.array.astype(dtype))
        value = self._truths.get(value.name, value)  # of two in a row one is enough
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        out = self.op("Cast", [value], value.shape, dtype, to=kind)
        if value.dtype.kind == "b":
            self._truths[out.name] = value
        return out

    def reduce(self, kind, value, axes, keep=False):
        """ReduceSum and its like over `axes`; of truth values those of 0 and 1.

        Integers are below 2^24, and reduced as float32: of integers OpenVINO 2026.4
        leaves images of a batch out.
        """
        if value.dtype.kind in "bi":
            wide = self.cast(value, np.float32)
            return self.cast(self.reduce(kind, wide, axes, keep), value.dtype)
        axes = [int(axis) % value.ndim for axis in axes]
        shape = [1 if i in axes else side for i, side in enumerate(value.shape)]
        rest = [side for i, side in enumerate(value.shape) if i not in axes]
        if kind == "ReduceSum" and len(axes) == 1 and axes[0] < value.ndim - 1:
            if value.shape[axes[0]] in range(2, HEADS + 1):
                total = self._sum_of_parts(value, *axes, shape)
                return total if keep else self.reshape(total, rest)
        axes = Value.of(np.array(axes, np.int64))
        shape = shape if keep else rest
        return self.op(kind, [value, axes], shape, value.dtype, keepdims=int(keep))

    def _sum_of_parts(self, value, axis, shape):
        """ReduceSum over a short axis; as one node OpenVINO 2026.4 takes longer."""
        count = value.shape[axis]
        parts = [(shape, value.dtype)] * count
        parts = self.ops("Split", [value], parts, axis=axis, num_outputs=count)
        return self.op("Sum", parts, shape, value.dtype)

    # Equations

    def walk(self, closed, inputs: Sequence[Value]) -> list[Value]:
        """Add the equations of a jaxpr, closed or not; the Values of its outputs."""
        jaxpr = getattr(closed, "jaxpr", closed)
        constants = map(Value.of, getattr(closed, "consts", ()))
        known = dict(zip(jaxpr.constvars, constants, strict=True))
        known |= zip(jaxpr.invars, inputs, strict=True)

        def read(atom):
            if isinstance(atom, core.Literal):
                return Value.of(np.asarray(atom.val, atom.aval.dtype))
            return known[atom]

        for equation in _needed(jaxpr):
            values = [read(atom) for atom in equation.invars]
            found = self._equation(equation, values)
            known.update(zip(equation.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation, values):
        name, params = equation.primitive.name, equation.params
        if name == "node":
            name = params["name"]
            values = self.wholes(equation, values)
            args, options = nodes.rebuilt(params["arguments"], values)
            found = self.functions[name](self, *args, **options)
            return found if isinstance(found, list | tuple) else [found]
        for inner in ("call_jaxpr", "jaxpr"):
            if _calls(equation, params.get(inner)):
                return self.walk(params[inner], values)
        folded = _folded(self, equation, values)
        if folded is not None:
            return folded
        if name not in self.primitives:
            raise unknown(name)
        found = self.primitives[name](self, equation, *values)
        return found if isinstance(found, list | tuple) else [found]


def _calls(equation, inner):
    """Whether `inner`, a jaxpr or None, has the operands and results of an equation."""
    inner = getattr(inner, "jaxpr", inner)
    if inner is None or equation.primitive.name == "scan":
        return False
    pairs = (inner.invars, equation.invars), (inner.outvars, equation.outvars)
    return all([v.aval.shape for v in a] == [v.aval.shape for v in b] for a, b in pairs)


def _needed(jaxpr):
    """The equations that the outputs depend on."""
    live, kept = set(map(id, jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if live & set(map(id, equation.outvars)):
            kept.append(equation)
            live |= set(map(id, equation.invars))
    return kept[::-1]


def unknown(name):
    """The InputError for what has no operator."""
    return InputError(
        f"the model computes {name}, which has no ONNX operator here; allowed are "
        "reductions by fixed counts (--format jax has all of them)"
    )


def is_number(side, number):
    """Whether a side is this number, and not open."""
    return isinstance(side, int | np.integer) and side == number


def broadcast(*shapes):
    """The shape of arrays of these shapes together; sides may be open."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    sides = []
    for each in zip(*padded, strict=True):
        others = [side for side in each if not is_number(side, 1)]
        sides.append(others[0] if others else 1)
    return tuple(sides)


def _folded(graph, equation, values):
    """Constants that the equation gives of constants; None: it is to be a node."""
    if any(value.array is None for value in values):
        return None
    params = equation.params
    shapes = [atom.aval.shape for atom in (*equation.invars, *equation.outvars)]
    if any(map(graph.is_open, shapes)):
        return None
    arrays = [
        np.broadcast_to(value.array, atom.aval.shape)
        for value, atom in zip(values, equation.invars, strict=True)
    ]
    with jax.ensure_compile_time_eval():
        found = equation.primitive.bind(*map(jax.numpy.asarray, arrays), **params)
    found = found if equation.primitive.multiple_results else [found]
    return [Value.of(np.asarray(array)) for array in found]


def _permuted(constant, order):
    """A constant that broadcasts with what has been transposed by `order`."""
    array = constant.array
    sides = (1,) * (len(order) - array.ndim) + array.shape
    return Value.of(array.reshape(sides).transpose(order)) if array.ndim else constant


def _content(array):
    """What two equal constants have in common."""
    return array.dtype.str, array.shape, hashlib.sha256(array).digest()
