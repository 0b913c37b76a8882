"""ImagePiece on DeiT-S without pruning: 2.86 GMACs, 76 final tokens, published 79.67.

The paper does not say how much this form merges; merge_ratio .15 gives its speed.
python train.py --config configs/deit_s_imagepiece_merge_only.py
"""

from configs import deit_s_imagepiece


def get_config():
    """The six merge steps alone: every patch stays in some token."""
    config = deit_s_imagepiece.get_config()
    config.reduction.merge_ratio = 0.15
    config.reduction.prune_blocks = ()
    return config
