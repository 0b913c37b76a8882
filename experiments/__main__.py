"""The paper's tables: python -m experiments NAME --help."""

from imagepiece_jax import cli

if __name__ == "__main__":
    from experiments.paper import main

    cli.run_command(main, "python -m experiments")
