"""DPC-KNN: cluster tokens around density peaks (Zeng et al., CVPR 2022).

Clustering is not in the GMACs.

python train.py --config configs/deit_s_dpc_knn.py
    2.88 GMACs, 68 final tokens, 6.64 EFLOP, no published acc1
python train.py --config configs/deit_s_dpc_knn.py:deit_ti
    0.78 GMACs, 68 final tokens, 1.79 EFLOP, no published acc1
"""

from configs import deit_s


def get_config(size="deit_s"):
    """As compared by Haurum et al. 2023, with plain means, by DeiT's recipe."""
    return deit_s.get_config(size, "dpc_knn")
