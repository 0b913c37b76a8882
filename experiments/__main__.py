"""The paper's tables: python -m experiments NAME --help."""

from imagepiece_jax import cli
from imagepiece_jax.common import cache_dirs, signals

if __name__ == "__main__":
    signals.handle_ending_signals()
    cache_dirs.keep_compiled_programs()  # before the tables import JAX
    from experiments.paper import main

    cli.run_command(main, "python -m experiments")
