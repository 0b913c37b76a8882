"""ImagePiece on DeiT-S without the conv stem: 2.41 GMACs, published acc1 79.81.

python train.py --config configs/deit_s_imagepiece_patch_stem.py
"""

from configs import deit_s_imagepiece


def get_config():
    """The ablation without local coherence bias."""
    config = deit_s_imagepiece.get_config()
    config.model.stem = "patch"
    return config
