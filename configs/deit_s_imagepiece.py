"""ImagePiece on DeiT-S: 2.78 GMACs, 61 final tokens, published acc1 80.22.

python train.py --config configs/deit_s_imagepiece.py
"""

from ml_collections import config_dict

from configs import deit_s


def get_config():
    """Conv stem; merge, merge, prune three times (published for DeiT-S: 79.83)."""
    config = deit_s.get_config()
    config.model.stem = "conv"
    config.reduction = imagepiece()
    return config


def imagepiece():
    """The fields of ImagePiece's recipe with the paper's settings."""
    fields = config_dict.ConfigDict()
    fields.name = "imagepiece"
    fields.keep_rate = 0.8  # of the image tokens, at each prune step
    fields.merge_ratio = 0.08  # of all tokens, at each merge step
    fields.candidate_ratio = 0.3  # the least attended share, which may be merged
    fields.schedule = "B"  # merge 0 1 3 4 6 7, prune 2 5 8; "A": one block later
    fields.merge_blocks = config_dict.placeholder(tuple)  # override the schedule
    fields.prune_blocks = config_dict.placeholder(tuple)
    fields.merge_base = "all"  # merge_ratio counts all tokens, or the "candidates"
    fields.order = "descending"  # candidates are dealt out most attended first
    fields.parity = 0  # which of the two that are dealt first may leave
    fields.metric = "key"  # what is compared: "key", "query", "value", "token"
    fields.size_weighting = True  # a merged token is the mean over its patches
    return fields
