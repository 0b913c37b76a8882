"""Grid pooling on DeiT-Ti, 7 x 7 from block 6 on: 0.78 GMACs, 50 final tokens.

python train.py --config configs/deit_ti_grid_pooling.py
"""

from configs import deit_s_grid_pooling


def get_config():
    """As for DeiT-S, in the smaller size."""
    config = deit_s_grid_pooling.get_config()
    config.model.name = "deit_ti"
    return config
