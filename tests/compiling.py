"""XLA flags that compile the tests' tiny programs fast, and stand-ins for a GPU's."""

from importlib import metadata

QUICK = "--xla_backend_optimization_level=0"
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    # Six times as fast. Later versions exit at a flag that they do not know, and none
    # of 0.12's replaces it: 8 ms for every fusion make a suite 1.8 times as long.
    # Opt preset FAST_COMPILE, no fusion wrapper, no expensive passes: no difference.
    # Without fusion compiling takes four times as long.
    QUICK += " --xla_cpu_use_fusion_emitters=false"
    QUICK += " --xla_cpu_parallel_codegen_split_count=1"
    # Passes that make large programs fast, and take a tenth of the time here.
    QUICK += " --xla_disable_hlo_passes=" + ",".join(
        (
            "constant_folding",
            "cpu-parallel-task-assigner",
            "dynamic-dimension-simplifier",
            "literal-canonicalizer",
            "map-inline",
            "reduce-decomposer",
            "reshape-mover",
            "shape-canonicalizer",
            "tree_reduction_rewriter",
            "while-loop-constant-sinking",
        )
    )

# Compiler options that a CPU accepts and that change nothing: with these in
# common.xla_options.OPTIONS["cpu"], programs are compiled as they are on a GPU.
HARMLESS = {"xla_embed_ir_in_executable": False}
