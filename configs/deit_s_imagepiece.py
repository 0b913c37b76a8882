"""ImagePiece: retokenize inattentive tokens, evaluate them again, prune.

python train.py --config configs/deit_s_imagepiece.py
    2.78 GMACs, 61 final tokens, 6.42 EFLOP, published acc1 80.22 (DeiT-S: 79.83)
python train.py --config configs/deit_s_imagepiece.py:deit_ti
    0.73 GMACs, 61 final tokens, 1.69 EFLOP, published acc1 72.61 (DeiT-Ti: 72.13)

Without local coherence bias; these fit public DeiT weights:

python train.py --config configs/deit_s_imagepiece.py --config.model.stem=patch
    2.41 GMACs, 61 final tokens, 5.55 EFLOP, published acc1 79.81
python train.py --config configs/deit_s_imagepiece.py:deit_ti --config.model.stem=patch
    0.65 GMACs, 61 final tokens, 1.50 EFLOP, no published acc1

Without pruning; the paper does not say how much this form merges, and merge_ratio .15
gives its speed:

python train.py --config configs/deit_s_imagepiece.py \\
        --config.reduction.merge_ratio=0.15 "--config.reduction.prune_blocks=()"
    2.86 GMACs, 76 final tokens, 6.59 EFLOP, published acc1 79.67
"""

from ml_collections import config_dict

from configs import deit_s


def get_config(size="deit_s"):
    """Conv stem; merge, merge, prune three times."""
    config = deit_s.get_config(size)
    config.model.stem = "conv"
    config.reduction = imagepiece()
    return config


def imagepiece():
    """The fields of ImagePiece with the paper's settings."""
    fields = config_dict.ConfigDict()
    fields.name = "imagepiece"
    fields.keep_rate = 0.8  # of the image tokens, at each prune step
    fields.merge_ratio = 0.08  # of all tokens, at each merge step
    fields.candidate_ratio = 0.3  # the least attended share, which may be merged
    fields.schedule = "B"  # merge 0 1 3 4 6 7, prune 2 5 8; "A": one block later
    fields.merge_blocks = config_dict.placeholder(tuple)  # override the schedule
    fields.prune_blocks = config_dict.placeholder(tuple)
    fields.merge_base = "all"  # merge_ratio counts all tokens, or the "candidates"
    fields.order = "descending"  # candidates are split most attended first
    fields.parity = 0  # which of the first two candidates may leave
    fields.metric = "key"  # what is compared: "key", "query", "value", "token"
    fields.size_weighting = True  # a merged token is the mean over its patches
    # "class" attention, or what else ranks the tokens: "received", "energy", "shift",
    # "probe" (docs/models.md).
    fields.score = "auto"
    fields.inattentive = "merge"  # controls of equal counts: "drop", "random", "tome"
    return fields
