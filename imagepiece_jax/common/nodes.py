"""Functions exported as single nodes of another runtime's graph.

Another runtime has operators of its own for some functions. Inside `marked_functions`,
a function marked by `onnx_op` is traced as one `jax.lax.composite`, and an exporter
translates it as a whole. Outside `marked_functions`, the mark changes nothing.
"""

import contextlib
import contextvars
import functools

import jax
import numpy as np

ARRAY_TYPES = (jax.Array, np.ndarray)
COMPOSITE_PRIMITIVE = "composite"  # the equation's primitive

_are_functions_marked = contextvars.ContextVar("marked", default=False)


def onnx_op(fn):
    """Mark `fn`, a function of arrays, pytrees and static values, as a single node."""

    def whole(*arrays, arguments):
        args, options = _rebuilt_arguments(arguments, arrays)
        return fn(*args, **options)

    composite = jax.lax.composite(whole, fn.__name__)

    @functools.wraps(fn)
    def called(*args, **options):
        # A composite has no derivative, and takes static values only by name.
        if not _are_functions_marked.get():
            return fn(*args, **options)
        leaves, tree = jax.tree.flatten((args, options), is_leaf=lambda x: x is None)
        arrays = []
        statics = []  # as in `_rebuilt_arguments`
        for leaf in leaves:
            if isinstance(leaf, ARRAY_TYPES):
                arrays.append(leaf)
                statics.append(None)
            else:
                statics.append((leaf,))
        return composite(*arrays, arguments=(tree, tuple(statics)))

    return called


def marked_call(equation, operands):
    """(name, args, options) of an equation's marked call.

    operands: replace the equation's arrays
    """
    ((_, leaves, tree),) = equation.params["attributes"]
    arguments = jax.tree.unflatten(tree, leaves)
    return equation.params["name"], *_rebuilt_arguments(arguments, operands)


def _rebuilt_arguments(arguments, arrays):
    """(args, options) of a marked call, rebuilt with `arrays`.

    arguments: (tree, statics); statics: per leaf, None for an array, else (its value,)
    """
    tree, statics = arguments
    count = statics.count(None)
    # The function's constants come before its arrays.
    arrays = iter(arrays[len(arrays) - count :])
    leaves = []
    for static in statics:
        if static is None:
            leaves.append(next(arrays))
        else:
            (value,) = static
            leaves.append(value)
    return jax.tree.unflatten(tree, leaves)


@contextlib.contextmanager
def marked_functions():
    """Trace every marked function inside as one equation."""
    token = _are_functions_marked.set(True)
    try:
        yield
    finally:
        _are_functions_marked.reset(token)
