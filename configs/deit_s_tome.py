"""ToMe, r = 13: merge the most similar pairs in every block (Bolya et al., ICLR 2023).

python train.py --config configs/deit_s_tome.py
    2.70 GMACs, 41 final tokens, 6.23 EFLOP, published acc1 79.36
python train.py --config configs/deit_s_tome.py:deit_ti
    0.73 GMACs, 41 final tokens, 1.69 EFLOP, published acc1 71.27
"""

from configs import deit_s


def get_config(size="deit_s"):
    """Every block merges, with proportional attention, trained as by its authors."""
    return deit_s.get_config(size, "tome")
