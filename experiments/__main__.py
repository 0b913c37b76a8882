"""The paper's tables and studies: python -m experiments NAME --help."""

import importlib
import sys

from imagepiece_jax import cli
from imagepiece_jax.common import cache_dirs, signals

STUDIES = ("neighbors", "types")  # scripts of their own

if __name__ == "__main__":
    signals.handle_ending_signals()
    script = "paper"
    if sys.argv[1:] and sys.argv[1] in STUDIES:
        script = sys.argv.pop(1)
    cache_dirs.keep_compiled_programs()  # before the script imports JAX
    main = importlib.import_module(f"experiments.{script}").main
    cli.run_command(main, f"python -m experiments {script}")
