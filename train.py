"""Train a model: python train.py --config configs/deit_s_imagepiece.py"""

import runpy

COMMAND = "imagepiece_jax.commands.train"

if __name__ == "__main__":
    runpy.run_module(COMMAND, run_name="__main__", alter_sys=True)
