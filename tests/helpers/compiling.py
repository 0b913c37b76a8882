"""XLA flags that compile the tests' tiny programs fast.

HARMLESS options stand in for a GPU's.
"""

from importlib import metadata

import numpy as np

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


def needs_float16():
    """Skip a test where XLA compiles nothing in float16.

    Processors without F16C, and --xla_cpu_max_isa=SSE4_2, leave it out.
    """
    import jax  # behind the flags of this file, which tests/conftest.py sets first
    import pytest

    one = np.float32(1)
    try:
        jax.jit(lambda x: x.astype("float16"))(one)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0]
        pytest.skip(f"needs float16, which XLA does not compile here: {reason}")
