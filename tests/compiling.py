"""Flags under which XLA compiles tests' tiny programs fast rather than well."""

from importlib import metadata

QUICK = "--xla_backend_optimization_level=0"
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    # Six times as fast, and unknown to later versions, which end at unknown flags.
    QUICK += " --xla_cpu_use_fusion_emitters=false"
    QUICK += " --xla_cpu_parallel_codegen_split_count=1"
