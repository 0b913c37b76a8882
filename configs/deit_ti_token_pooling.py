"""Token Pooling on DeiT-Ti, keep .7: 0.78 GMACs, 68 final tokens.

python train.py --config configs/deit_ti_token_pooling.py
"""

from configs import deit_s_token_pooling


def get_config():
    """As for DeiT-S, in the smaller size."""
    config = deit_s_token_pooling.get_config()
    config.model.name = "deit_ti"
    return config
