"""MCTF: fuse by similarity, attention and size, in attention (Lee et al., CVPR 2024).

python train.py --config configs/deit_s_mctf.py
    2.58 GMACs, 21 final tokens, 5.94 EFLOP, published acc1 80.1
python train.py --config configs/deit_s_mctf.py:deit_ti
    0.70 GMACs, 21 final tokens, 1.61 EFLOP, published acc1 72.7
"""

from configs import deit_s


def get_config(size="deit_s"):
    """Its published setting, by DeiT's recipe: its consistency loss is not built."""
    return deit_s.get_config(size, "mctf")
