"""DynamicViT on DeiT-Ti, keep .7: 0.80 GMACs, 68 final tokens, published acc1 71.20.

python train.py --config configs/deit_ti_dynamicvit.py
--config.init.weights=DEIT_TI --config.teacher.weights=DEIT_TI (trained dense weights)
"""

from configs import deit_s_dynamicvit


def get_config():
    """As for DeiT-S, in the smaller size."""
    config = deit_s_dynamicvit.get_config()
    config.model.name = "deit_ti"
    return config
