"""ImagePiece + ToMe on DeiT-S: 2.78 GMACs, 61 final tokens, published acc1 80.08.

python train.py --config configs/deit_s_imagepiece_tome.py
"""

from configs import deit_s_imagepiece


def get_config():
    """ImagePiece, but where it prunes ToMe merges down to the same counts."""
    config = deit_s_imagepiece.get_config()
    config.reduction.name = "imagepiece_tome"
    return config
