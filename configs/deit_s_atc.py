"""ATC: agglomerative clustering of tokens (Haurum et al., ECCV 2024).

Clustering, one merge after the other, is not in the GMACs.

python train.py --config configs/deit_s_atc.py
    2.98 GMACs, 68 final tokens, 6.87 EFLOP, no published acc1
python train.py --config configs/deit_s_atc.py:deit_ti
    0.81 GMACs, 68 final tokens, 1.86 EFLOP, no published acc1
"""

from configs import deit_s


def get_config(size="deit_s"):
    """Complete linkage and proportional attention, by DeiT's recipe."""
    return deit_s.get_config(size, "atc")
