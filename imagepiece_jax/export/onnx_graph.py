"""An ONNX graph under construction.

`onnx_primitives` adds nodes for JAX's primitives, `onnx_ops` for functions that
`common.nodes` marks as a single node. An array is broadcast only where a node needs all
of it, because ONNX's operators broadcast, too.
"""

import collections
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax.numpy import broadcast_shapes

if TYPE_CHECKING:
    from onnx import GraphProto

# Operators of a constant and a number, computed during the export
NUMPY = {
    "Add": np.add,
    "Mul": np.multiply,
    "Div": lambda a, b: (a / b).astype(a.dtype),
}


def stored_dtype(dtype) -> np.dtype:
    """Dtype in the graph for a JAX dtype: integers except uint8 become int64."""
    # TopK, ArgMax and Gather need int64, so no casts are needed between them.
    dtype = np.dtype(dtype)
    if dtype.kind in "iu" and dtype != np.uint8:
        return np.dtype(np.int64)
    return dtype


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor in the graph, or a constant not yet in the graph."""

    # sides are ints, or multiples of the open batch; a 1 may stand for a broadcast side
    shape: tuple
    dtype: np.dtype  # a result of `stored_dtype`
    name: str | None = None  # name in the graph; None: a constant
    array: np.ndarray | None = None  # the value of a constant

    @classmethod
    def constant(cls, array, dtype=None):
        """Make a constant from an array, a number or a list of numbers."""
        array = np.asarray(array, dtype)
        array = np.asarray(array, stored_dtype(array.dtype), order="C")
        return cls(array.shape, array.dtype, array=array)

    @property
    def ndim(self):
        return len(self.shape)


@dataclasses.dataclass(frozen=True)
class Note:
    """Facts about a Value, from which `onnx_ops` chooses shorter programs."""

    # (array, axis, start): the Value is consecutive rows of the array along one axis.
    # `Graph.slice` writes it; `Graph.unsliced` and `unit` read it.
    slice_of: tuple | None = None
    # (values, sorted tokens): the Value is `values` of sorted tokens, in token order.
    # `gather_rows` writes and reads it.
    by_rank: tuple[Value, Value] | None = None
    # The Value holds the tokens' ranks, the note the tokens sorted by rank. `rank`
    # writes it; `pick`, `invert` and comparisons read it.
    sorted_tokens: Value | None = None
    # (sorted tokens, first, end): the Value says whether a token's rank is in
    # first..end-1. Comparisons and "not" write it; "not" and `invert` read it.
    ranks: tuple[Value, int, int] | None = None
    # Whether a token is kept: the Value is its index among the kept tokens.
    # `index_among` writes it, `invert` reads it.
    keep: Value | None = None
    # (queries, key bias, weights): attention of all tokens, with the Value as keys.
    # `attend` writes it, `mean_attention` reads it.
    attention: tuple[Value, Value | None, Value] | None = None


class Graph:
    """Nodes and constants of an ONNX graph under construction, without duplicates.

    images: the input. Its first side may be open (a dimension of jax.export).
    """

    def __init__(self, images: Value):
        self.images = images
        self.nodes = []
        self.constants = {}
        self._outputs = {}  # {(kind, operands, attributes) of a node: its Values}
        self._count = {}  # {kind of node: number of its names so far}
        # {name of a Value: (kind, operands, attributes) of its node}
        self._made = collections.defaultdict(lambda: (None, (), {}))
        self.notes = collections.defaultdict(Note)  # {name of a Value: its Note}

    # Nodes

    def op(self, kind, inputs: Sequence, shape, dtype, **attributes):
        """Add a node with one output; return its Value. `inputs`: Values and arrays."""
        return self.ops(kind, inputs, [(shape, dtype)], **attributes)[0]

    def ops(self, kind, inputs, results, **attributes):
        """Add a node; return its outputs' Values.

        results: (shape, dtype) per output
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
        """Name a Value. Equal constants share one initializer.

        name: name of a new initializer; None: a numbered name
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
        """Build the ONNX graph of {name: output}, with the nodes the outputs need."""
        from onnx import helper, numpy_helper

        outputs = self._distinct(outputs)
        names = {value.name: name for name, value in outputs.items()}
        live = {*names}
        needed = []
        for node in reversed(self.nodes):
            if live & {*node.output}:
                needed.append(node)
                live |= {*node.input}
                # The graph's outputs get their public names.
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
        """Copy Values with two names: {name: output} without a repeated Value."""
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
        """Make a new name, such as "MatMul_3"."""
        number = self._count.get(kind, 0)
        self._count[kind] = number + 1
        return f"{kind}_{number}"

    # Shapes

    def reshape(self, value, shape):
        """Reshape a Value. At most one side of `shape` is open."""
        shape = tuple(shape)
        kind, operands, _ = self._made[value.name]
        if kind == "Reshape":  # two reshapes in a row: the second is enough
            value = operands[0]
        if value.shape == shape:
            return value
        if value.array is not None:
            return Value.constant(value.array.reshape(shape))
        sides = np.array([-1 if is_open(side) else side for side in shape], np.int64)
        return self.op("Reshape", [value, sides], shape, value.dtype)

    def transpose(self, value, order):
        value, before = self.untransposed(value)
        order = tuple(before[i] for i in order)  # two transposes become one
        if order == tuple(range(value.ndim)):
            return value
        if value.array is not None:
            return Value.constant(value.array.transpose(order))
        shape = tuple(value.shape[i] for i in order)
        return self.op("Transpose", [value], shape, value.dtype, perm=order)

    def untransposed(self, value):
        """(source, axis order) of a transposed Value.

        Any other Value is its own source, with its axes in order.
        """
        kind, operands, attributes = self._made[value.name]
        if kind != "Transpose":
            return value, tuple(range(value.ndim))
        return operands[0], attributes["perm"]

    def slice(self, value, axis, start, limit, stride=1):
        """value[start:limit:stride] along one axis."""
        shape = list(value.shape)
        if (start, limit, stride) == (0, shape[axis], 1):
            return value
        shape[axis] = math.ceil((limit - start) / stride)
        kind, parts, options = self._made[value.name]
        if kind == "Concat" and options["axis"] == axis and stride == 1:
            ends = itertools.accumulate(part.shape[axis] for part in parts)
            for part, end in zip(parts, ends, strict=True):
                if (start, limit) == (end - part.shape[axis], end):
                    return part
        operands = [value, [start], [limit], [axis], [stride]]
        out = self.op("Slice", operands, shape, value.dtype)
        if stride == 1:
            self.notes[out.name] = Note(slice_of=(value, axis, start))
        return out

    def unsliced(self, value, axis):
        """(source, start) of rows sliced along `axis`; any other Value and 0."""
        source = self.notes[value.name].slice_of
        if source and source[1] == axis:
            return source[0], source[2]
        return value, 0

    def expand(self, value, shape):
        shape = tuple(shape)
        if value.shape == shape:
            return value
        if value.array is not None and not any(map(is_open, shape)):
            return Value.constant(np.broadcast_to(value.array, shape))
        # Sides that the Value has are 1 here, so that many nodes share these sides.
        own = (1,) * (len(shape) - value.ndim) + value.shape
        sides = [1 if a == b else b for a, b in zip(own, shape, strict=True)]
        return self.op("Expand", [value, self._sides(sides)], shape, value.dtype)

    def unexpanded(self, value):
        """The source of a broadcast Value; any other Value is its own source."""
        kind, operands, _ = self._made[value.name]
        return operands[0] if kind == "Expand" else value

    def concat(self, values, axis):
        shape = list(values[0].shape)
        shape[axis] = sum(value.shape[axis] for value in values)
        return self.op("Concat", values, shape, values[0].dtype, axis=axis)

    def output(self, value, shape):
        """Make a Value a graph output: broadcast, and made by a node."""
        value = self.expand(value, shape)
        if value.array is None:
            return value
        return self.op("Identity", [value], shape, value.dtype)

    def _sides(self, shape):
        """A shape as an int64 tensor. Open sides are multiples of the batch."""
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

        inputs: Values, and numbers of the Values' dtype
        """
        like = next(each.dtype for each in inputs if isinstance(each, Value))
        inputs = [_as_value(each, like) for each in inputs]
        shape = broadcast_shapes(*[value.shape for value in inputs])
        if dtype is None:
            dtype = inputs[0].dtype
        if kind in ("Add", "Mul") and inputs[0].array is not None:
            inputs = inputs[::-1]
        if len(inputs) == 2 and inputs[1].array is not None and inputs[1].ndim == 0:
            shorter = self._with_number(kind, inputs[0], inputs[1].array)
            if shorter:
                return shorter
        value, *others = sorted(inputs, key=lambda value: value.array is not None)
        source, order = self.untransposed(value)
        constant = all(other.array is not None for other in others)
        # A node of one transposed Value and constants is added before the transpose. So
        # the transposes between several convolutions come together and cancel.
        if source is not value and constant and source.ndim == len(shape):
            back = np.argsort(order)
            before = []
            for each in inputs:
                before.append(source if each is value else _permuted(each, back))
            out = self.elementwise(kind, *before, dtype=dtype, **attributes)
            return self.transpose(out, order)
        return self.op(kind, inputs, shape, dtype, **attributes)

    def _with_number(self, kind, value, number):
        """The result of a Value and a number without a node of its own, or None."""
        if number == {"Add": 0, "Div": 1, "Mul": 1, "Pow": 1}.get(kind):
            return value
        before, operands, options = self._made[value.name]
        if before == "Gather" and operands[0].array is not None and kind in NUMPY:
            operands = [NUMPY[kind](operands[0].array, number), operands[1]]
            return self.op(before, operands, value.shape, value.dtype, **options)
        if before == "ReduceSum" and kind == "Div":
            source, axes = operands
            if number == math.prod(source.shape[axis] for axis in axes.array):
                return self.reduce(
                    "ReduceMean", source, axes.array, options["keepdims"]
                )
        return None

    def cast(self, value, dtype):
        from onnx import helper

        dtype = stored_dtype(dtype)
        if value.dtype == dtype:
            return value
        if value.array is not None:
            return Value.constant(value.array.astype(dtype))
        before, operands, _ = self._made[value.name]
        if before == "Cast" and operands[0].dtype.kind == "b":  # one cast is enough
            value = operands[0]
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        return self.op("Cast", [value], value.shape, dtype, to=kind)

    def reduce(self, kind, value, axes, keep=False):
        """Add a reduction, such as ReduceSum, over `axes`; return its Value."""
        # Booleans count as 0 and 1. Integers are below 2^24, so exact in float32.
        # OpenVINO 2026.4 reduces integers of only some images in a batch.
        if value.dtype.kind in "bi":
            wide = self.cast(value, np.float32)
            return self.cast(self.reduce(kind, wide, axes, keep), value.dtype)
        axes = [int(axis) % value.ndim for axis in axes]
        kept_shape = list(value.shape)
        for axis in axes:
            kept_shape[axis] = 1
        rest = [side for i, side in enumerate(value.shape) if i not in axes]
        shape = kept_shape if keep else rest
        return self.op(kind, [value, axes], shape, value.dtype, keepdims=int(keep))


def _as_value(given, dtype=None):
    """Turn a number or an array into a constant; a Value stays."""
    if isinstance(given, Value):
        return given
    return Value.constant(given, dtype)


def is_open(side):
    """Whether a side of a shape is the open batch, or a multiple of it."""
    return not isinstance(side, int | np.integer)


def _permuted(constant, order):
    """Transpose a constant to broadcast with an array transposed by `order`."""
    array = constant.array
    if array.ndim == 0:
        return constant
    sides = (1,) * (len(order) - array.ndim) + array.shape
    return Value.constant(array.reshape(sides).transpose(order))
