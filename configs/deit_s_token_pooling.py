"""Token Pooling: cluster tokens (Marin et al., 2021); clustering is not in the GMACs.

python train.py --config configs/deit_s_token_pooling.py
    2.88 GMACs, 68 final tokens, 6.64 EFLOP, published acc1 71.35 (ImagePiece's authors)
python train.py --config configs/deit_s_token_pooling.py:deit_ti
    0.78 GMACs, 68 final tokens, 1.79 EFLOP, no published acc1
"""

from configs import deit_s


def get_config(size="deit_s"):
    """K-Medoids, weighted by the attention that a token receives."""
    return deit_s.get_config(size, "token_pooling")
