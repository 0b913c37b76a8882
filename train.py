"""Train a model: python train.py --config configs/deit_s_imagepiece.py"""

from imagepiece_jax import old_cli
from imagepiece_jax.commands import _train as train

if __name__ == "__main__":
    old_cli.run(train.main)
