"""ImagePiece on DeiT-Ti with the patch stem: 0.65 GMACs; fits public DeiT-Ti weights.

python train.py --config configs/deit_ti_imagepiece_patch_stem.py
"""

from configs import deit_ti_imagepiece


def get_config():
    """No local coherence bias, so that DeiT weights can be used as they are."""
    config = deit_ti_imagepiece.get_config()
    config.model.stem = "patch"
    return config
