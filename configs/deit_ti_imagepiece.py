"""ImagePiece on DeiT-Ti: 0.73 GMACs, 61 final tokens, published acc1 72.61.

python train.py --config configs/deit_ti_imagepiece.py
"""

from configs import deit_s_imagepiece


def get_config():
    """As for DeiT-S, in the smaller size (published for DeiT-Ti: 72.13)."""
    config = deit_s_imagepiece.get_config()
    config.model.name = "deit_ti"
    return config
