"""TokenLearner: 16 learned mixtures take the place of all tokens (Ryoo et al., 2021).

python train.py --config configs/deit_s_token_learner.py
    2.86 GMACs, 17 final tokens, 6.61 EFLOP, published acc1 79.01 (ImagePiece's authors)
python train.py --config configs/deit_s_token_learner.py:deit_ti
    0.78 GMACs, 17 final tokens, 1.81 EFLOP, no published acc1
"""

from ml_collections import config_dict

from configs import deit_s


def get_config(size="deit_s"):
    """Version 1.1; the class token bypasses it."""
    config = deit_s.get_config(size)
    config.reduction = config_dict.ConfigDict()
    config.reduction.name = "token_learner"
    config.reduction.num_tokens = 16  # that take the place of all image tokens
    config.reduction.block = 7  # the first block that sees them
    config.reduction.version = "v1.1"  # "v1.0": convolutions and sigmoids
    config.reduction.bottleneck_dim = 64  # of v1.1: width of its scoring MLP
    config.reduction.pooling = "sum"  # of v1.0: or "mean", over the image tokens
    return config
