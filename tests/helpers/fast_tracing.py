"""Trace and lower the tests' models fast."""

import functools
import inspect
import types

import jax
from flax.core import scope
from jax._src import api_util, core
from jax._src.interpreters import mlir


@functools.cache
def _initial_shape(init_fn, args, options):
    return jax.eval_shape(lambda: init_fn(jax.random.key(0), *args, **dict(options)))


def _eval_shape(fn, *args):
    """`jax.eval_shape`, once per initializer and shape."""
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
        return _initial_shape(closure["init_fn"], closure["init_args"], options)
    except TypeError:  # not hashable
        return jax.eval_shape(fn, *args)


def remember_initializers():
    """Let flax trace an initializer once, not whenever it checks a parameter's shape.

    Checking every parameter of every traced model takes an eighth of the time.
    """
    scope.jax = types.SimpleNamespace(**vars(jax) | {"eval_shape": _eval_shape})


def name_no_arguments():
    """Leave traced functions' arguments unnamed.

    JAX's names serve only error messages, and take a twelfth of the time.
    """
    api_util.debug_info.__kwdefaults__["signature"] = inspect.Signature()
    api_util._non_static_arg_names = lambda *args: None


def remember_exports():
    """Let all exports have one open batch.

    JAX reuses traced functions, and graphs with different open batches share none.
    """
    symbols = functools.cache(jax.export.symbolic_shape)
    jax.export.symbolic_shape = symbols


_make_context = functools.cache(mlir.make_ir_context)
_lower_equation = getattr(mlir, "_cached_lowering_miss", None)  # not in every JAX
_lowered = {}


def _lower_once(ctx, eqn, cache_key, avals_in, **params):
    """Lower an equation once; JAX copies the result into every program."""
    key = cache_key, ctx.axis_context, ctx.lowering_parameters
    if key not in _lowered:
        rule = _lower_equation(ctx, eqn, cache_key, avals_in, **params)
        is_special = eqn.effects or rule.const_args or ctx.shape_poly_state.dim_vars
        if is_special or not rule.inline or not _stands_alone(rule.func, params):
            return rule
        _lowered[key] = rule
    ctx.lowering_cache[cache_key] = _lowered[key]
    return _lowered[key]


def _stands_alone(func, params):
    """Whether a function calls no other function and comes from no inner jaxpr.

    Programs number their channels between devices, so it may have no channel.
    """
    names = []

    def note_operation(operation):
        channel = "channel_handle" in operation.attributes
        names.append("a channel" if channel else operation.name)
        return mlir.ir.WalkResult.ADVANCE

    func.operation.walk(note_operation)
    are_plain = (
        name.startswith(("stablehlo.", "chlo.", "func.")) and "call" not in name
        for name in names
    )
    return all(are_plain) and not any(core.jaxprs_in_params(params))


def lower_fast():
    """Lower a program in a third of the time, to the same program.

    JAX makes an MLIR context (5 ms) and lowers all equations for each program.
    Here programs share both, and tracebacks keep their last line.
    """
    mlir.make_ir_context = _make_context
    if _lower_equation is not None:
        mlir._cached_lowering_miss = _lower_once
    jax.config.update("jax_include_full_tracebacks_in_locations", False)


def renew_mlir_context():
    """Renew MLIR's context: it keeps all programs' constants."""
    _lowered.clear()
    _make_context.cache_clear()
