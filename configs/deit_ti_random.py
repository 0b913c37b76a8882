"""Random tokens on DeiT-Ti, keep .7: 0.81 GMACs, 69 final tokens, as EViT's.

python train.py --config configs/deit_ti_random.py
"""

from configs import deit_s_random


def get_config():
    """As for DeiT-S, in the smaller size."""
    config = deit_s_random.get_config()
    config.model.name = "deit_ti"
    return config
