"""Tokens stay that are attended, and unlike every more attended token; the rest merges.

python train.py --config configs/deit_s_peaks.py
    2.98 GMACs, 68 final tokens, 6.87 EFLOP, no published acc1
python train.py --config configs/deit_s_peaks.py:deit_ti
    0.81 GMACs, 68 final tokens, 1.86 EFLOP, no published acc1
"""

from configs import deit_s


def get_config(size="deit_s"):
    """Keep .7 of the tokens at blocks 3, 6 and 9, trained by DeiT's recipe."""
    return deit_s.get_config(size, "peaks")
