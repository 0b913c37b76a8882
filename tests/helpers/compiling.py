"""Trace and compile the tests' tiny programs fast.

HARMLESS options stand in for a GPU's.
"""

import functools
import inspect
import os
import pathlib
import threading
import types
import zlib
from importlib import metadata

import jax
from flax.core import scope
from jax._src import api_util, compilation_cache, lru_cache
from jax._src.interpreters import mlir

QUICK = "--xla_backend_optimization_level=0"
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    # Six times as fast. Later versions exit at an unknown flag, and no flag of 0.12
    # replaces it: 8 ms for every fusion make the suite 1.8 times as long.
    QUICK += " --xla_cpu_use_fusion_emitters=false"
    QUICK += " --xla_cpu_parallel_codegen_split_count=1"
    # These passes make large programs fast, and take a tenth of the time here.
    QUICK += (
        " --xla_disable_hlo_passes=constant_folding,cpu-parallel-task-assigner,"
        "dynamic-dimension-simplifier,literal-canonicalizer,map-inline,reshape-mover,"
        "reduce-decomposer,shape-canonicalizer,tree_reduction_rewriter,"
        "while-loop-constant-sinking"
    )

# A CPU accepts these compiler options, and they change nothing: with them in
# xla_options.PLATFORM_OPTIONS["cpu"], programs are compiled as they are on a GPU.
HARMLESS = {"xla_embed_ir_in_executable": False}

# Compiled programs stay here for the next run: compiling takes half of the tests'
# processor time, and reading a program an eighth of compiling it. JAX names a program
# by its operations, its options and its own version.
PROGRAMS = pathlib.Path(__file__).resolve().parents[2] / "build" / "programs"


@functools.cache
def _initial_shape(init_fn, args, options):
    return jax.eval_shape(lambda: init_fn(jax.random.key(0), *args, **dict(options)))


def _eval_shape(fn, *args):
    """`jax.eval_shape`, once per initializer and shape."""
    closure = inspect.getclosurevars(fn).nonlocals
    if closure.keys() != {"init_fn", "init_args", "init_kwargs"}:
        return jax.eval_shape(fn, *args)
    options = tuple(closure["init_kwargs"].items())
    try:
        return _initial_shape(closure["init_fn"], closure["init_args"], options)
    except TypeError:  # not hashable
        return jax.eval_shape(fn, *args)


# It keeps all programs' constants until `cache_clear`.
make_context = functools.cache(mlir.make_ir_context)


def _put_whole(self, key, value):
    part = self.path / f"{key}-{os.getpid()}-{threading.get_ident()}"
    try:
        part.write_bytes(value)
        os.replace(part, self.path / f"{key}-cache")
    except OSError:  # a test fills the disk or removes the folder
        part.unlink(missing_ok=True)


def speed_up():
    """Trace in four fifths of the time, to the same program, and keep programs."""
    # Flax checks every parameter's shape by tracing its initializer: an eighth.
    scope.jax = types.SimpleNamespace(**vars(jax) | {"eval_shape": _eval_shape})
    # Names of arguments serve only error messages: a twelfth.
    api_util.debug_info.__kwdefaults__["signature"] = inspect.Signature()
    api_util._non_static_arg_names = lambda *args: None
    # Graphs with different open batches would share no traced function.
    jax.export.symbolic_shape = functools.cache(jax.export.symbolic_shape)
    # JAX makes a context for every program, in 5 ms; and tracebacks keep a line.
    mlir.make_ir_context = make_context
    jax.config.update("jax_include_full_tracebacks_in_locations", False)
    # JAX writes programs in place, so another process may read half a program, and it
    # warns where it cannot write. Its compression takes three times as long.
    lru_cache.LRUCache.put = _put_whole
    compilation_cache.compress_executable = functools.partial(zlib.compress, level=1)
    compilation_cache.decompress_executable = zlib.decompress
