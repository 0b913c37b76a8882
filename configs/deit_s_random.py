"""Random tokens on DeiT-S, keep .7: 3.00 GMACs, 69 final tokens, as EViT's.

python train.py --config configs/deit_s_random.py
"""

from ml_collections import config_dict

from configs import deit_s


def get_config():
    """A control: what is kept is drawn by chance, in training and evaluation."""
    config = deit_s.get_config()
    config.reduction = config_dict.ConfigDict()
    config.reduction.name = "random"
    config.reduction.keep_rate = 0.7  # of the image tokens, at each block below
    config.reduction.blocks = (3, 6, 9)  # between their attention and MLP
    return config
