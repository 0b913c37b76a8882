"""Functions exported as single nodes of another runtime's graph.

Another runtime has operators of its own for some functions. Inside `marked_functions`,
a function marked by `onnx_op` is traced as one `jax.lax.composite`, and an exporter
translates it as a whole. Outside `marked_functions`, the mark changes nothing.
"""

import contextlib
import contextvars
import functools
import types
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.extend.core import JaxprEqn

ARRAY_TYPES = (jax.Array, np.ndarray)
COMPOSITE_PRIMITIVE = "composite"  # the equation's primitive

_are_functions_marked = contextvars.ContextVar("marked", default=False)
_replacements: contextvars.ContextVar[Mapping[str, Callable]] = contextvars.ContextVar(
    "replacements", default=types.MappingProxyType({})
)


def onnx_op(fn: Callable) -> Callable:
    """Mark `fn`, a function of arrays, pytrees and static values, as a single node."""

    def call_whole(*arrays, arguments):
        args, options = _rebuild_arguments(arguments, arrays)
        return fn(*args, **options)

    composite = jax.lax.composite(call_whole, fn.__name__)

    @functools.wraps(fn)
    def call_marked(*args, **options):
        if replacement := _replacements.get().get(fn.__name__):
            return replacement(*args, **options)
        # A composite has no derivative, and takes static values only by name.
        if not _are_functions_marked.get():
            return fn(*args, **options)
        # None is a static value, too: without `is_leaf` it would be no leaf.
        leaves, treedef = jax.tree.flatten((args, options), is_leaf=lambda x: x is None)
        arrays = [leaf for leaf in leaves if isinstance(leaf, ARRAY_TYPES)]
        # In a tuple, so that a None is not taken for an array.
        static_entries = [
            None if isinstance(leaf, ARRAY_TYPES) else (leaf,) for leaf in leaves
        ]
        return composite(*arrays, arguments=(treedef, tuple(static_entries)))

    return call_marked


def read_marked_call(equation: JaxprEqn, operands: Sequence) -> tuple:
    """(name, args, options) of an equation's marked call.

    operands: replace the equation's arrays
    """
    # The only attribute is `arguments`, which JAX has flattened.
    ((_, leaves, treedef),) = equation.params["attributes"]
    arguments = jax.tree.unflatten(treedef, leaves)
    args, options = _rebuild_arguments(arguments, operands)
    return equation.params["name"], args, options


def _rebuild_arguments(arguments, arrays):
    """(args, options) of a marked call, rebuilt with `arrays`.

    arguments: (treedef, static entries); an entry per leaf, None for an array, else
        (its value,)
    """
    treedef, static_entries = arguments
    num_arrays = static_entries.count(None)
    # The function's constants come before its arrays.
    remaining_arrays = iter(arrays[len(arrays) - num_arrays :])
    leaves = []
    for entry in static_entries:
        leaves.append(next(remaining_arrays) if entry is None else entry[0])
    return jax.tree.unflatten(treedef, leaves)


def marked_functions() -> contextlib.AbstractContextManager:
    """Trace every marked function inside as one equation."""
    return _value_inside(_are_functions_marked, True)


def replaced_functions(**replacements: Callable) -> contextlib.AbstractContextManager:
    """Call these functions in place of marked functions of their names."""
    return _value_inside(_replacements, replacements)


@contextlib.contextmanager
def _value_inside(variable, value):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
