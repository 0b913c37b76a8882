"""Random tokens at EViT's keep rate: a control.

python train.py --config configs/deit_s_random.py
    3.00 GMACs, 69 final tokens, 6.91 EFLOP, no published acc1
python train.py --config configs/deit_s_random.py:deit_ti
    0.81 GMACs, 69 final tokens, 1.87 EFLOP, no published acc1
"""

from ml_collections import config_dict

from configs import deit_s


def get_config(size="deit_s"):
    """Draw what is kept at random, in training and evaluation."""
    config = deit_s.get_config(size)
    config.reduction = config_dict.ConfigDict()
    config.reduction.name = "random"
    config.reduction.keep_rate = 0.7  # of the image tokens, at each block below
    config.reduction.blocks = (3, 6, 9)  # between their attention and MLP
    return config
