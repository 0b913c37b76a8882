"""ImagePiece + ToMe on DeiT-Ti: 0.73 GMACs, 61 final tokens.

python train.py --config configs/deit_ti_imagepiece_tome.py
"""

from configs import deit_s_imagepiece_tome


def get_config():
    """As for DeiT-S, in the smaller size."""
    config = deit_s_imagepiece_tome.get_config()
    config.model.name = "deit_ti"
    return config
