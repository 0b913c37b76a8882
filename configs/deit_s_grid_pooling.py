"""Grid pooling on DeiT-S, 7 x 7 from block 6 on: 2.87 GMACs, 50 final tokens.

python train.py --config configs/deit_s_grid_pooling.py
"""

from ml_collections import config_dict

from configs import deit_s


def get_config():
    """A control: neighbours are averaged, whatever they show."""
    config = deit_s.get_config()
    config.reduction = config_dict.ConfigDict()
    config.reduction.name = "grid_pooling"
    config.reduction.grid_size = 7  # cells a side, at most as many as patches
    config.reduction.block = 6  # the first block that sees the cells
    return config
