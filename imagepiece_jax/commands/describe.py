"""Tokens, MACs and parameters of a config, block by block.

Each kind of reducer is tried on random tokens (reduction.contract), for about a second.
A config is followed by the operations and the memory of its training, for which no
images are needed and nothing is compiled, and by the line on its cost that the file's
docstring repeats.

python -m imagepiece_jax describe --config configs/deit_s_imagepiece.py
python -m imagepiece_jax describe --weights FILE --config.reduction.name=tome \\
    --config.reduction.r=8
"""

from imagepiece_jax import cli

cli.define_config("a config file, such as configs/quickstart.py, or --weights")
WEIGHTS = cli.weights()
cli.macs()


def main():
    path = WEIGHTS.value
    if path is None:
        _, run = cli.run_config()
    else:
        config, overrides = cli.config_or_base()
    # These import JAX, which --help and a mistyped flag need not wait for.
    from imagepiece_jax.common.image_size import patch_grid
    from imagepiece_jax.config.run import RunConfig
    from imagepiece_jax.models import cost
    from imagepiece_jax.pretrained.with_config import load_with_config
    from imagepiece_jax.reduction import contract
    from imagepiece_jax.training import report

    if path is not None:
        config, vit = load_with_config(path, config, overrides, abstract=True)
        run = RunConfig.from_config(config)
    run = run.at_cost()
    model = run.create_model()
    # The same stem shows what the reduction saves; papers compare with the patch stem.
    others = [run.create_dense(), run.create_dense(stem="patch")]
    grid = patch_grid(run.image_size, model.patch_size, cut=True)
    width = model.embed_dim
    heads = model.num_heads
    prefix = model.arch.prefix
    contract.try_reducers(model.plan, grid, width, heads, prefix)
    print(cost.describe(model, others, run.image_size))
    if path is None:
        print(report.estimate(run))
    elif vit.recovery:
        print(f"recovered for {vit.recovery}")


if __name__ == "__main__":
    cli.run(main, compiles=False)
