"""ToFu: prune in the first half, fuse in the second (Kim et al., WACV 2024).

python train.py --config configs/deit_s_tofu.py
    2.98 GMACs, 81 final tokens, 6.86 EFLOP, no published acc1
python train.py --config configs/deit_s_tofu.py:deit_ti
    0.80 GMACs, 81 final tokens, 1.85 EFLOP, no published acc1
"""

from configs import deit_s


def get_config(size="deit_s"):
    """As in PiToMe's public code."""
    return deit_s.get_config(size, "tofu")
