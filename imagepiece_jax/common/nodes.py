"""Functions that are one node of a graph for another runtime.

XLA compiles what a function does; another runtime has operators of its own for some of
it. Inside `marked` a function marked by `node` is traced as one `jax.lax.composite`,
which an exporter translates as a whole. Outside it the mark changes nothing: a
composite has no derivative, and takes static values only by name.
"""

import contextlib
import contextvars
import functools

import jax
import numpy as np

ARRAYS = (jax.Array, np.ndarray)
PRIMITIVE = "composite"  # of the equation

_marked = contextvars.ContextVar("marked", default=False)


def node(fn):
    """Mark `fn`, which takes arrays, pytrees of them and static values, as one node."""

    def whole(*arrays, arguments):
        args, options = _rebuilt(arguments, arrays)
        return fn(*args, **options)

    composite = jax.lax.composite(whole, fn.__name__)

    @functools.wraps(fn)
    def called(*args, **options):
        if not _marked.get():
            return fn(*args, **options)
        leaves, tree = jax.tree.flatten((args, options), is_leaf=lambda x: x is None)
        arrays = []
        statics = []  # for each leaf None if it is an array, else (its value,)
        for leaf in leaves:
            if isinstance(leaf, ARRAYS):
                arrays.append(leaf)
                statics.append(None)
            else:
                statics.append((leaf,))
        return composite(*arrays, arguments=(tree, tuple(statics)))

    return called


def call(equation, operands):
    """(name, args, options) of the marked call behind an equation.

    operands: take the place of the equation's arrays
    """
    ((_, leaves, tree),) = equation.params["attributes"]
    arguments = jax.tree.unflatten(tree, leaves)
    return equation.params["name"], *_rebuilt(arguments, operands)


def _rebuilt(arguments, arrays):
    """(args, options) of a marked call with other `arrays`."""
    tree, statics = arguments
    count = statics.count(None)
    # Constants of the function come before its arrays.
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
def marked():
    """Context in which each marked function is traced as one equation."""
    token = _marked.set(True)
    try:
        yield
    finally:
        _marked.reset(token)
