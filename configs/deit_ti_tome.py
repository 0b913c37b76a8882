"""ToMe on DeiT-Ti, r = 13: 0.73 GMACs, 41 final tokens, published acc1 71.27.

python train.py --config configs/deit_ti_tome.py
"""

from configs import deit_s_tome


def get_config():
    """As for DeiT-S, in the smaller size; fits public DeiT-Ti weights untrained."""
    config = deit_s_tome.get_config()
    config.model.name = "deit_ti"
    return config
