"""EViT on DeiT-Ti, keep .7, dropped: 0.81 GMACs, 69 final tokens, published acc1 71.70.

python train.py --config configs/deit_ti_evit.py
"""

from configs import deit_s_evit


def get_config():
    """As for DeiT-S, in the smaller size."""
    config = deit_s_evit.get_config()
    config.model.name = "deit_ti"
    return config
