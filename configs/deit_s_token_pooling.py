"""Token Pooling on DeiT-S, keep .7: 2.88 GMACs, 68 final tokens, published acc1 71.35.

python train.py --config configs/deit_s_token_pooling.py
"""

from ml_collections import config_dict

from configs import deit_s


def get_config():
    """Clustering is not in the GMACs. Accuracy as ImagePiece's authors report it."""
    config = deit_s.get_config()
    config.reduction = config_dict.ConfigDict()
    config.reduction.name = "token_pooling"
    config.reduction.keep_rate = 0.7  # clusters: keep_rate ** s of all at the s-th step
    config.reduction.blocks = (3, 6, 9)  # the first blocks that see fewer tokens
    config.reduction.algorithm = "kmedoids"  # or "kmeans"
    config.reduction.score = "columns"  # attention received; "cls": of the class token
    config.reduction.iterations = 3  # of the clustering
    return config
