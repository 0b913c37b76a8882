"""MCTF: fuse by similarity, attention and size, in attention (Lee et al., CVPR 2024).

python train.py --config configs/deit_s_mctf.py
    2.58 GMACs, 21 final tokens, 5.94 EFLOP, published acc1 80.1
python train.py --config configs/deit_s_mctf.py:deit_ti
    0.70 GMACs, 21 final tokens, 1.61 EFLOP, published acc1 72.7
"""

from ml_collections import config_dict

from configs import deit_s


def get_config(size="deit_s"):
    """Its published setting, by DeiT's recipe: its consistency loss is not built."""
    config = deit_s.get_config(size)
    config.reduction = config_dict.ConfigDict()
    config.reduction.name = "mctf"
    config.reduction.r = 16  # tokens that a block loses; below 1: their share
    config.reduction.blocks = config_dict.placeholder(tuple)  # empty: all but the first
    config.reduction.score = "received"  # which attention: "class" reads no whole map
    # Temperatures of the criteria: each counts to the power of 1 over its own.
    config.reduction.similarity = 1.0
    config.reduction.attention = 20.0  # little of it is better
    config.reduction.sizes = 40.0  # small is better
    return config
