"""ToFu: prune in the first half, fuse in the second (Kim et al., WACV 2024).

python train.py --config configs/deit_s_tofu.py
    2.98 GMACs, 81 final tokens, 6.86 EFLOP, no published acc1
python train.py --config configs/deit_s_tofu.py:deit_ti
    0.80 GMACs, 81 final tokens, 1.85 EFLOP, no published acc1
"""

from ml_collections import config_dict

from configs import deit_s


def get_config(size="deit_s"):
    """As in PiToMe's public code."""
    config = deit_s.get_config(size)
    config.reduction = config_dict.ConfigDict()
    config.reduction.name = "tofu"
    config.reduction.keep_rate = 0.925  # of all tokens, in every block
    config.reduction.rescale = "destination"  # length of fused tokens; or "mean"
    config.reduction.metric = "key"  # what is compared; or "query", "value", "token"
    return config
