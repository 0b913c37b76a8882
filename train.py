"""Train a model: python train.py --config configs/deit_s_imagepiece.py"""

from imagepiece_jax.__main__ import run_command

if __name__ == "__main__":
    run_command("train")
