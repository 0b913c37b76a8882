"""What does a config compute? Tokens, MACs and parameters, block by block.

python -m imagepiece_jax.describe --config configs/deit_s_imagepiece.py
"""

from imagepiece_jax import cli

CONFIG = cli.define_config()


def main():
    config = cli.required(CONFIG)
    from imagepiece_jax.training import report, setup

    model, dense = setup.model(config), setup.dense(config)
    print(report.plan_text(model, dense, config.image_size))
    if model.stem != "patch":
        patch = setup.dense(config, stem="patch")
        print(report.against(model, patch, config.image_size))


if __name__ == "__main__":
    cli.run(main)
