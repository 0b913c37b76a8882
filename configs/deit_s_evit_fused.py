"""EViT on DeiT-S, keep .7, fused: 3.03 GMACs, 72 final tokens, published acc1 79.5.

python train.py --config configs/deit_s_evit_fused.py
"""

from configs import deit_s_evit


def get_config():
    """The form of its authors: dropped tokens are fused into one."""
    config = deit_s_evit.get_config()
    config.reduction.fuse_token = True
    return config
