"""Shapes in the package's signatures, checked by every test (jaxtyping's hook).

Only hints of arrays are checked at run time: a type checker reads all hints, and tests
pass wrong types to see the errors.
"""

import functools
import inspect
import operator
import types
import typing

import jax
import jaxtyping
import numpy as np

from imagepiece_jax import __name__ as PACKAGE

jaxtyped = jaxtyping.jaxtyped


def install():
    """Check the functions of modules imported from now on."""
    jaxtyping.jaxtyped = check_arrays
    jaxtyping.install_import_hook(PACKAGE, "beartype.beartype")


def check_arrays(function=None, *, typechecker):
    """Like `jaxtyping.jaxtyped`, which would slow down functions without arrays."""
    if function is None:
        return functools.partial(check_arrays, typechecker=typechecker)
    hints = getattr(function, "__annotations__", {})
    arrays = {name: widen(hint) for name, hint in hints.items() if has_array(hint)}
    if inspect.isclass(function) or not arrays:
        return function
    function.__annotations__ = arrays
    return jaxtyped(function, typechecker=typechecker)


def has_array(hint):
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(has_array, typing.get_args(hint)))


def widen(hint):
    """The hint with NumPy arrays beside JAX arrays, because JAX takes both."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        if hint.array_type is jax.Array:
            return hint.dtype[jax.Array | np.ndarray, hint.dim_str]
        return hint
    parts = tuple(map(widen, typing.get_args(hint)))
    if not parts:
        return hint
    if isinstance(hint, types.UnionType):
        return functools.reduce(operator.or_, parts)
    return typing.get_origin(hint)[parts]
