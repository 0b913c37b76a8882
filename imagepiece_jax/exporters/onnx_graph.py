"""An ONNX graph under construction.

`onnx_primitives` adds nodes for JAX's primitives, `onnx_kernels` for functions that
`common.nodes` marks as a single node. An array is broadcast only where a node needs all
of it, because ONNX's operators broadcast, too.

JAX's integers are float32 in the graph, exact up to `LARGEST_INTEGER`, because
onnxruntime's WebGPU provider has no int64, and would copy arrays to the CPU and back.
int64 are only the constants that count sides and axes.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jax.numpy import broadcast_shapes
from numpy.typing import ArrayLike, DTypeLike

from imagepiece_jax.errors import InputError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Shape = Sequence[Any]  # sides are ints, or multiples of the open batch
ONNX_OPSET = 20  # the first with Gelu
LARGEST_INTEGER = 2**23  # half of a larger one would be rounded
# Operators that WebGPU has for numbers only. Booleans become numbers and back.
MOVING_OPERATORS = {"Concat", "Gather", "Identity", "Pad"}
MOVING_OPERATORS |= {"Reshape", "Slice", "Split", "Transpose"}


def stored_dtype(dtype: DTypeLike) -> np.dtype:
    """Dtype in the graph for a JAX dtype: integers except uint8 become float32.

    int64, which JAX does not use here, is the dtype of ONNX's own indices.
    """
    dtype = np.dtype(dtype)
    if dtype.kind in "iu" and dtype not in (np.uint8, np.int64):
        return np.dtype(np.float32)
    return dtype


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor in the graph, or a constant not yet in the graph."""

    shape: Shape  # a 1 may stand for a broadcast side
    dtype: np.dtype  # a result of `stored_dtype`
    name: str = ""  # name in the graph; "": a constant
    array: np.ndarray | None = None  # the value of a constant

    @classmethod
    def constant(cls, array: ArrayLike, dtype: DTypeLike | None = None) -> Self:
        """Make a constant from an array, a number or a list of numbers."""
        array = np.asarray(array, dtype)
        # Not by `stored_dtype`: int64 is no index here.
        if array.dtype.kind in "iu" and array.dtype != np.uint8:
            if (np.abs(array) > LARGEST_INTEGER).any():
                problem = f"integers above {LARGEST_INTEGER}"
                raise InputError(f"the model computes with {problem}: no exact graph")
            array = array.astype(np.float32)
        array = np.asarray(array, order="C")
        return cls(array.shape, array.dtype, array=array)

    @property
    def ndim(self) -> int:
        return len(self.shape)


Values = Sequence[Value]
Inputs = Sequence[Value | ArrayLike]  # of a node; integers count sides or axes


class Graph:
    """Nodes and constants of an ONNX graph under construction, without duplicates.

    images: the input. Its first side may be open (a dimension of jax.export).
    """

    def __init__(self, images: Value) -> None:
        self.images = images
        self.nodes: list[NodeProto] = []
        # {(dtype, shape, digest) of an array: (its name, array)}
        self.constants: dict[tuple, tuple[str, np.ndarray]] = {}
        # {(kind, operands, attributes) of a node: its Values}
        self._known_outputs: dict[tuple, list[Value]] = {}
        self._name_counts = collections.Counter()  # {kind of node: names so far}
        # {name of a Value: (kind, operands, attributes) of its node}; a constant and
        # the images have no node
        self._node_of_value = collections.defaultdict(lambda: ("", [], {}))

    # Nodes

    def add_node(
        self, kind: str, inputs: Inputs, shape: Shape, dtype: Any, **attributes: Any
    ) -> Value:
        """Add a node with one output; return its Value. `inputs`: Values and arrays."""
        outputs = self.add_multi_output_node(kind, inputs, [shape], dtype, **attributes)
        return outputs[0]

    def add_multi_output_node(
        self, kind: str, inputs: Inputs, shapes: Shape, dtype: Any, **attributes: Any
    ) -> list[Value]:
        """Add a node; return its outputs' Values. `shapes`: of each output."""
        from onnx import helper

        operands = [_as_operand(node_input) for node_input in inputs]
        has_booleans = any(operand.dtype.kind == "b" for operand in operands)
        if kind in MOVING_OPERATORS and has_booleans:
            operands = [self.as_number(operand) for operand in operands]
            add_floats = functools.partial(self.add_multi_output_node, kind, operands)
            floats = add_floats(shapes, np.float32, **attributes)
            return [self.cast(value, bool) for value in floats]
        input_names = tuple(map(self.name_value, operands))
        # Attributes as text: lists have no hash.
        node_key = (kind, input_names, *sorted(map(str, attributes.items())))
        if node_key in self._known_outputs:
            return self._known_outputs[node_key]
        output_names = [self._new_name(kind) for _ in shapes]
        first_name = output_names[0]  # also the node's name
        node = helper.make_node(
            kind, input_names, output_names, first_name, **attributes
        )
        self.nodes.append(node)
        self._node_of_value[first_name] = (kind, operands, attributes)
        output_values = []
        for shape, name in zip(shapes, output_names, strict=True):
            output_values.append(Value(tuple(shape), stored_dtype(dtype), name))
        self._known_outputs[node_key] = output_values
        return output_values

    def name_value(self, value: Value, name: str | None = None) -> str:
        """Return a Value's name; equal constants share one named initializer.

        name: name of a new initializer; None: a numbered name
        """
        if value.array is None:
            return value.name
        array = value.array
        digest = hashlib.sha256(array.tobytes()).digest()
        array_key = (array.dtype.str, array.shape, digest)
        if array_key not in self.constants:
            name = name or self._new_name("constant")
            self.constants[array_key] = (name, array)
        return self.constants[array_key][0]

    def make_model(self, outputs: Mapping[str, Value]) -> "ModelProto":
        """Make the ONNX model of {name: output}, with the nodes the outputs need.

        Its file format is the oldest with the opset's operators.
        """
        from onnx import helper, numpy_helper

        public_names = {value.name: name for name, value in outputs.items()}
        needed_names = {*public_names}
        needed_nodes = []
        for node in reversed(self.nodes):  # its readers come after it
            if needed_names & {*node.output}:
                needed_nodes.append(node)
                needed_names |= {*node.input}
                # The graph's outputs get their public names.
                for field in (node.input, node.output):
                    field[:] = [public_names.get(name, name) for name in field]

        def value_info(name, value):
            element_type = helper.np_dtype_to_tensor_dtype(value.dtype)
            # An open side is stored as text, such as "batch".
            sides: list[int | str] = []
            for side in value.shape:
                sides.append(str(side) if is_open_side(side) else int(side))
            return helper.make_tensor_value_info(name, element_type, sides)

        initializers = []
        for name, array in self.constants.values():
            if name in needed_names:
                initializers.append(numpy_helper.from_array(array, name))
        graph = helper.make_graph(
            nodes=needed_nodes[::-1],
            name="imagepiece_jax",
            inputs=[value_info(self.images.name, self.images)],
            outputs=[value_info(name, output) for name, output in outputs.items()],
            initializer=initializers,
        )
        opsets = [helper.make_opsetid("", ONNX_OPSET)]
        return helper.make_model(
            graph,
            producer_name="imagepiece_jax",
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
        )

    def _new_name(self, kind):
        """Make a new name, such as "MatMul_3"."""
        self._name_counts[kind] += 1
        return f"{kind}_{self._name_counts[kind] - 1}"

    def as_number(self, value: Value) -> Value:
        """Turn booleans into 0 and 1; any other Value stays."""
        return self.cast(value, np.float32) if value.dtype.kind == "b" else value

    # Shapes

    def reshape(self, value: Value, shape: Shape) -> Value:
        """Reshape a Value. At most one side of `shape` is open."""
        shape = tuple(shape)
        kind, operands, _ = self._node_of_value[value.name]
        if kind == "Reshape":  # two reshapes in a row: the second is enough
            value = operands[0]
        if value.shape == shape:
            return value
        if value.array is not None:
            return Value.constant(value.array.reshape(shape))
        # ONNX infers the side -1 from the number of elements.
        target_sides = [-1 if is_open_side(side) else side for side in shape]
        return self.add_node("Reshape", [value, target_sides], shape, value.dtype)

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """Transpose a Value. Two transposes in a row become one."""
        source, source_order = self.source_and_order(value)
        joint_order = tuple(source_order[axis] for axis in order)
        if joint_order == tuple(range(source.ndim)):
            return source
        if source.array is not None:
            return Value.constant(source.array.transpose(joint_order))
        shape = tuple(source.shape[axis] for axis in joint_order)
        options = {"perm": joint_order}
        return self.add_node("Transpose", [source], shape, source.dtype, **options)

    def source_and_order(self, value: Value) -> tuple[Value, Sequence[int]]:
        """(source, axis order) of a transposed Value.

        Any other Value is its own source, with its axes in order.
        """
        kind, operands, attributes = self._node_of_value[value.name]
        if kind != "Transpose":
            return value, tuple(range(value.ndim))
        return operands[0], attributes["perm"]

    def slice(
        self, value: Value, axis: int, start: int, limit: int, stride: int = 1
    ) -> Value:
        """value[start:limit:stride] along one axis."""
        shape = list(value.shape)
        if (start, limit, stride) == (0, shape[axis], 1):
            return value
        shape[axis] = math.ceil((limit - start) / stride)
        source_kind, sources, attributes = self._node_of_value[value.name]
        # A slice that is one part of a concatenation needs no node.
        if source_kind == "Concat" and attributes["axis"] == axis and stride == 1:
            ends = itertools.accumulate(source.shape[axis] for source in sources)
            for source, end in zip(sources, ends, strict=True):
                if (start, limit) == (end - source.shape[axis], end):
                    return source
        operands = [value, [start], [limit], [axis], [stride]]
        return self.add_node("Slice", operands, shape, value.dtype)

    def source_and_start(self, value: Value, axis: int) -> tuple[Value, int]:
        """(source, start) of rows sliced along `axis`; any other Value and 0."""
        kind, operands, _ = self._node_of_value[value.name]
        if kind == "Slice":
            source, starts, _, *axes_and_strides = operands
            # Arrays of one number each; a Slice without strides has other operands.
            if [each.array for each in axes_and_strides] == [axis, 1]:
                return source, np.asarray(starts.array).item()
        return value, 0

    def expand(self, value: Value, shape: Shape) -> Value:
        """Broadcast a Value to a shape, of which one side may be open."""
        shape = tuple(shape)
        if value.shape == shape:
            return value
        if value.array is not None and not any(map(is_open_side, shape)):
            return Value.constant(np.broadcast_to(value.array, shape))
        # Sides are added in front, as in NumPy.
        value_sides = [1] * (len(shape) - value.ndim) + [*value.shape]
        opened_sides = []
        for value_side, side in zip(value_sides, shape, strict=True):
            opened_sides.append(side if is_open_side(side) else value_side)
        if opened_sides != value_sides:
            numbers = self.as_number(self.reshape(value, value_sides))
            zeros = self._open_zeros(opened_sides, numbers.dtype)
            sums = self.add_node("Add", [numbers, zeros], opened_sides, zeros.dtype)
            value = self.cast(sums, value.dtype)
        # Sides that the Value has are 1 here, so that many nodes share these sides.
        repeats = []
        for opened_side, side in zip(opened_sides, shape, strict=True):
            repeats.append(1 if opened_side == side else side)
        if any(side != 1 for side in repeats):
            return self.add_node("Expand", [value, repeats], shape, value.dtype)
        return self.reshape(value, opened_sides)

    def _open_zeros(self, shape, dtype):
        """Zeros with the open side of `shape`; all other sides are 1."""
        # An operator that counts the images would compute integers.
        (open_side,) = filter(is_open_side, shape)
        batch = self.images.shape[0]
        rows_per_image = int(open_side // batch)
        slice_ends = [1] * (self.images.ndim - 1)
        other_axes = [*range(1, self.images.ndim)]
        corner_shape = (batch, *slice_ends)  # [batch, 1, 1, 1]: a number an image
        slice_operands = [self.images, [0] * len(other_axes), slice_ends, other_axes]
        corner = self.add_node("Slice", slice_operands, corner_shape, self.images.dtype)
        zeros = self.add_elementwise("Mul", self.cast(corner, dtype), 0)
        if rows_per_image > 1:
            zeros = self.concat([self.reshape(zeros, (batch, 1))] * rows_per_image, 1)
        zeros_shape = [side if is_open_side(side) else 1 for side in shape]
        return self.reshape(zeros, zeros_shape)

    def concat(self, values: Values, axis: int) -> Value:
        """Join Values along an axis."""
        # Runtimes differ in arrays without elements, such as an empty prefix.
        values = [value for value in values if value.shape[axis]] or values[:1]
        if len(values) == 1:
            return values[0]
        shape = list(values[0].shape)
        shape[axis] = sum(value.shape[axis] for value in values)
        return self.add_node("Concat", values, shape, values[0].dtype, axis=axis)

    def add_elementwise(
        self, kind: str, *inputs: Any, dtype: Any = None, **attributes: Any
    ) -> Value:
        """Add a node that broadcasts its inputs, or a simpler one; return its Value.

        inputs: Values, and numbers of the first Value's dtype
        dtype: of the result; None: the first input's
        """
        number_dtype = next(each.dtype for each in inputs if isinstance(each, Value))
        operands = []
        for operand in inputs:
            if not isinstance(operand, Value):
                operand = Value.constant(operand, number_dtype)
            operands.append(operand)
        shape = broadcast_shapes(*[operand.shape for operand in operands])
        if dtype is None:
            dtype = operands[0].dtype
        if kind in ("Max", "Min"):
            return self._add_extremum(kind, *operands)
        source_kind, sources, _ = self._node_of_value[operands[-1].name]
        if (kind, source_kind) == ("Mul", "Reciprocal"):
            return self.add_elementwise("Div", operands[0], *sources, dtype=dtype)
        # A constant comes last, where the simpler forms look for it.
        if kind in ("Add", "Mul") and operands[0].array is not None:
            operands = operands[::-1]
        last_array = operands[-1].array
        if len(operands) == 2 and last_array is not None and last_array.ndim == 0:
            simplified_result = self._simplified_result(kind, operands[0], last_array)
            if simplified_result:
                return simplified_result
        value, *other_operands = sorted(operands, key=_is_constant)
        source, order = self.source_and_order(value)
        are_constants = all(map(_is_constant, other_operands))
        # A node of one transposed Value and constants is added before the transpose. So
        # the transposes between several convolutions come together and cancel.
        if source is not value and are_constants and source.ndim == len(shape):
            inverse_order = np.argsort(order).tolist()
            sources = [_transposed_constant(each, inverse_order) for each in operands]
            sources[operands.index(value)] = source
            result = self.add_elementwise(kind, *sources, dtype=dtype, **attributes)
            return self.transpose(result, order)
        return self.add_node(kind, operands, shape, dtype, **attributes)

    def _add_extremum(self, kind, *operands):
        """Max or Min of two Values, which WebGPU has for one number only (Clip)."""
        value, other = sorted(operands, key=_is_constant)
        if other.array is not None and other.array.size == 1:
            limit = other.array.reshape(())
            if (kind, limit) == ("Max", 0):
                return self.add_elementwise("Relu", value)
            infinity = np.asarray(np.inf, limit.dtype)
            limits = (limit, infinity) if kind == "Max" else (-infinity, limit)
            return self.add_node("Clip", [value, *limits], value.shape, value.dtype)
        comparison = "Greater" if kind == "Max" else "Less"
        is_chosen = self.add_elementwise(comparison, value, other, dtype=bool)
        operands = [is_chosen, value, other]
        return self.add_node("Where", operands, is_chosen.shape, value.dtype)

    def _simplified_result(self, kind, value, number):
        """The Value itself, a mean for a divided sum, or None for any other operation.

        number: the second operand, []
        """
        if number == {"Add": 0, "Div": 1, "Mul": 1, "Pow": 1}.get(kind):
            return value
        source_kind, operands, _ = self._node_of_value[value.name]
        if source_kind == "Reshape":
            source_kind, operands, _ = self._node_of_value[operands[0].name]
        if source_kind == "ReduceSum" and kind == "Div":
            summand = operands[0]
            axes = operands[1].array
            if axes is not None and number == math.prod(summand.shape[i] for i in axes):
                mean = self.add_reduction("ReduceMean", summand, axes, keepdims=True)
                return self.reshape(mean, value.shape)
        return None

    def cast(self, value: Value, dtype: DTypeLike) -> Value:
        """Convert a Value to the graph's dtype for a JAX dtype."""
        from onnx import helper

        dtype = stored_dtype(dtype)
        if value.dtype == dtype:
            return value
        if value.array is not None:
            return Value.constant(value.array.astype(dtype))
        source_kind, operands, _ = self._node_of_value[value.name]
        # One cast of a boolean is enough.
        if source_kind == "Cast" and operands[0].dtype.kind == "b":
            value = operands[0]
            if value.dtype == dtype:
                return value
        element_type = helper.np_dtype_to_tensor_dtype(dtype)
        return self.add_node("Cast", [value], value.shape, dtype, to=element_type)

    def add_reduction(
        self, kind: str, value: Value, axes: Iterable[int], keepdims: bool = False
    ) -> Value:
        """Add a reduction, such as ReduceSum, over `axes`; return its Value."""
        if value.dtype.kind == "b":  # booleans count as 0 and 1
            numbers = self.cast(value, np.float32)
            result = self.add_reduction(kind, numbers, axes, keepdims)
            return self.cast(result, value.dtype)
        axes = [int(axis) % value.ndim for axis in axes]
        source_kind, factors, _ = self._node_of_value[value.name]
        if (kind, source_kind) == ("ReduceSum", "Mul") and factors[0] is factors[1]:
            return self.add_reduction("ReduceSumSquare", factors[0], axes, keepdims)
        shape = list(value.shape)
        for axis in axes:
            shape[axis] = 1
        # OpenVINO 2026.4 adds a constant per row, [1, n, 1], to sums of rows wrongly,
        # unless a Reshape comes between. So no caller may add one to kept axes.
        result = self.add_node(kind, [value, axes], shape, value.dtype, keepdims=1)
        if keepdims:
            return result
        other_axes = [axis for axis in range(value.ndim) if axis not in axes]
        return self.reshape(result, [value.shape[axis] for axis in other_axes])


def _as_operand(node_input):
    """Turn an operator's numbers into a constant: integers count sides or axes."""
    if isinstance(node_input, Value):
        return node_input
    numbers = np.asarray(node_input)
    if numbers.dtype.kind != "i":
        return Value.constant(numbers)
    # Sides and axes are int64 in ONNX; `Value.constant` would make them float32.
    numbers = np.asarray(numbers, np.int64, order="C")
    return Value(numbers.shape, numbers.dtype, array=numbers)


def _is_constant(value):
    return value.array is not None


def is_open_side(side: Any) -> bool:
    """Whether a side of a shape is the open batch, or a multiple of it."""
    return not isinstance(side, int | np.integer)


def _transposed_constant(constant, order):
    """Transpose a constant to broadcast with an array transposed by `order`."""
    array = constant.array
    if array is None or array.ndim == 0:
        return constant
    sides = (1,) * (len(order) - array.ndim) + array.shape  # as broadcasting adds them
    return Value.constant(array.reshape(sides).transpose(order))
