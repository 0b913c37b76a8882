"""Grid pooling, 7 x 7 from block 6 on: a control.

python train.py --config configs/deit_s_grid_pooling.py
    2.87 GMACs, 50 final tokens, 6.62 EFLOP, no published acc1
python train.py --config configs/deit_s_grid_pooling.py:deit_ti
    0.78 GMACs, 50 final tokens, 1.80 EFLOP, no published acc1
"""

from configs import deit_s


def get_config(size="deit_s"):
    """Average neighbors, whatever they show."""
    return deit_s.get_config(size, "grid_pooling")
