"""How the tests' models are traced and lowered fast."""

import functools
import types

import jax
from flax.core import scope
from jax._src.interpreters import mlir

from imagepiece_jax.common import nodes


@functools.cache
def _initial(init_fn, args, options):
    return jax.eval_shape(lambda: init_fn(jax.random.key(0), *args, **dict(options)))


def _eval_shape(fn, *args):
    """`jax.eval_shape`, but of one initializer and shape only once."""
    closure = {
        name: cell.cell_contents
        for name, cell in zip(
            fn.__code__.co_freevars, fn.__closure__ or (), strict=True
        )
    }
    if closure.keys() != {"init_fn", "init_args", "init_kwargs"}:
        return jax.eval_shape(fn, *args)
    options = tuple(closure["init_kwargs"].items())
    try:
        return _initial(closure["init_fn"], closure["init_args"], options)
    except TypeError:  # not hashable
        return jax.eval_shape(fn, *args)


def remember_initializers():
    """Let flax trace an initializer once, not whenever it checks a parameter's shape.

    It does so for every parameter of every model that is traced: an eighth of the time.
    """
    scope.jax = types.SimpleNamespace(**vars(jax) | {"eval_shape": _eval_shape})


@functools.cache
def _node_shapes(fn, arguments, kinds, shapes):
    def whole(*arrays):
        args, options = nodes.rebuilt(arguments, arrays)
        return fn(*args, **options)

    return jax.eval_shape(whole, *shapes)


def _eval_node(fn, *arrays):
    """`jax.eval_shape`, but of one marked function and its arguments only once."""
    closure = zip(fn.__code__.co_freevars, fn.__closure__, strict=True)
    closure = {name: cell.cell_contents for name, cell in closure}
    places = closure["places"]
    kinds = tuple(place and type(place[0]) for place in places)  # 1 is equal to 1.0
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)
    try:
        return _node_shapes(closure["fn"], (closure["tree"], places), kinds, shapes)
    except TypeError:  # not hashable
        return jax.eval_shape(fn, *arrays)


def remember_exports():
    """Let all exports have one open batch, and trace a node's shapes once.

    JAX traces nothing again that it knows: with a batch of its own no graph of a model
    has a function in common with another's. It takes half of the time.
    """
    symbols = functools.cache(jax.export.symbolic_shape)
    jax.export.symbolic_shape = symbols
    nodes.jax = types.SimpleNamespace(**vars(jax) | {"eval_shape": _eval_node})


_make_context = functools.cache(mlir.make_ir_context)


def share_mlir_context():
    """Let JAX make the context of MLIR once, not for every program that it lowers.

    In JAX 0.10 it takes 5 ms of the 6 that a tiny program is lowered in.
    """
    mlir.make_ir_context = _make_context


def renew_mlir_context():
    """Make the next program's context anew: it keeps the constants of all programs."""
    _make_context.cache_clear()
