"""SPViT on DeiT-Ti: 0.67 GMACs, 30 final tokens, published acc1 72.09.

python train.py --config configs/deit_ti_spvit.py
--config.init.weights=DEIT_TI --config.teacher.weights=DEIT_TI (trained dense weights)
"""

from configs import deit_s_spvit


def get_config():
    """As for DeiT-S, in the smaller size."""
    config = deit_s_spvit.get_config()
    config.model.name = "deit_ti"
    return config
