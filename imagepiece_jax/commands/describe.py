"""Tokens, MACs and parameters of a config, block by block.

Each kind of reducer is tried on random tokens (reduction.contract), for about a second.

python -m imagepiece_jax describe --config configs/deit_s_imagepiece.py
python -m imagepiece_jax describe --weights FILE --config.reduction.name=tome \\
    --config.reduction.r=8
"""

from imagepiece_jax import cli

cli.define_config("a config file, such as configs/quickstart.py, or --weights")
WEIGHTS = cli.weights()


def main():
    path = WEIGHTS.value
    alone = path is None
    typed = (cli.config(), None) if alone else cli.config_or_base()
    # They import JAX: after the flags.
    from imagepiece_jax.models import registry, summary
    from imagepiece_jax.reduction import contract
    from imagepiece_jax.training import from_config
    from imagepiece_jax.training.weights_config import of_weights

    config = typed[0]
    if alone:
        from_config.check(config)
    else:
        config, _ = of_weights(path, *typed)
    model, dense = from_config.model(config), from_config.dense(config)
    # The same stem shows what the reduction saves; papers compare with the patch stem.
    others = [dense, from_config.dense(config, stem="patch")]
    grid = registry.grid(config.image_size, model.patch_size, cut=True)
    width, heads, prefix = model.embed_dim, model.num_heads, model.arch.prefix
    contract.try_reducers(model.plan, grid, width, heads, prefix)
    print(summary.describe(model, others, config.image_size))


if __name__ == "__main__":
    cli.run(main, compiles=False)
