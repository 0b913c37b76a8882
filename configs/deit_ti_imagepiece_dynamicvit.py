"""ImagePiece + DynamicViT on DeiT-Ti: 0.75 GMACs, 61 final tokens.

python train.py --config configs/deit_ti_imagepiece_dynamicvit.py
--config.init.weights=DENSE --config.teacher.weights=DENSE (dense, with the conv stem)
"""

from configs import deit_s_imagepiece_dynamicvit


def get_config():
    """As for DeiT-S, in the smaller size."""
    config = deit_s_imagepiece_dynamicvit.get_config()
    config.model.name = "deit_ti"
    return config
