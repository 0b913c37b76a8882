"""Token Pooling: cluster tokens (Marin et al., 2021); clustering is not in the GMACs.

python train.py --config configs/deit_s_token_pooling.py
    2.88 GMACs, 68 final tokens, 6.64 EFLOP, published acc1 71.35 (ImagePiece's authors)
python train.py --config configs/deit_s_token_pooling.py:deit_ti
    0.78 GMACs, 68 final tokens, 1.79 EFLOP, no published acc1
"""

from ml_collections import config_dict

from configs import deit_s


def get_config(size="deit_s"):
    """K-Medoids, weighted by the attention that a token receives."""
    config = deit_s.get_config(size)
    config.reduction = config_dict.ConfigDict()
    config.reduction.name = "token_pooling"
    config.reduction.keep_rate = 0.7  # clusters: keep_rate ** s of all at the s-th step
    config.reduction.blocks = (3, 6, 9)  # the first blocks that see fewer tokens
    config.reduction.algorithm = "kmedoids"  # or "kmeans"
    # Attention received, or "class", "energy", "shift", "probe" (docs/models.md).
    config.reduction.score = "received"
    config.reduction.iterations = 3  # of the clustering
    return config
