"""Functions that are one node of a graph for another runtime.

XLA compiles what a function does; another runtime has operators of its own for some of
it. Inside `marked` a function marked by `node` is traced as one equation of primitive
`node_p`, which an exporter translates as a whole; outside it the mark changes nothing.
"""

import contextlib
import contextvars
import functools

import jax
import numpy as np
from jax.extend import core

ARRAYS = (jax.Array, np.ndarray)

_marked = contextvars.ContextVar("marked", default=False)

node_p = core.Primitive("node")
node_p.multiple_results = True


@node_p.def_abstract_eval
def _shapes(*_, results, **_options):
    return [jax.core.ShapedArray(shape, dtype) for shape, dtype in results]


def node(fn):
    """Mark `fn`, which takes arrays, pytrees of them and static values, as one node.

    The equation has the arrays as operands and the parameters name, `arguments` (how
    to rebuild what `fn` was called with, see `rebuilt`) and `results`, their shapes.
    """

    @functools.wraps(fn)
    def called(*args, **options):
        if not _marked.get():
            return fn(*args, **options)
        leaves, tree = jax.tree.flatten((args, options), is_leaf=lambda x: x is None)
        arrays = [leaf for leaf in leaves if isinstance(leaf, ARRAYS)]
        places = tuple(None if isinstance(leaf, ARRAYS) else (leaf,) for leaf in leaves)

        def call(*arrays):
            args, options = rebuilt((tree, places), arrays)
            return fn(*args, **options)

        shapes = jax.eval_shape(call, *arrays)
        shapes, structure = jax.tree.flatten(shapes)
        results = tuple((x.shape, x.dtype) for x in shapes)
        out = node_p.bind(
            *arrays, name=fn.__name__, arguments=(tree, places), results=results
        )
        return jax.tree.unflatten(structure, out)

    return called


def rebuilt(arguments, arrays):
    """(args, options) of a marked call from its `arguments`, with other `arrays`."""
    tree, places = arguments
    arrays = iter(arrays)
    leaves = [next(arrays) if place is None else place[0] for place in places]
    return jax.tree.unflatten(tree, leaves)


@contextlib.contextmanager
def marked():
    """Trace marked functions as one equation each while entered."""
    token = _marked.set(True)
    try:
        yield
    finally:
        _marked.reset(token)
