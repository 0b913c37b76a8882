"""ToMe, r = 13: merge the most similar pairs in every block (Bolya et al., ICLR 2023).

python train.py --config configs/deit_s_tome.py
    2.70 GMACs, 41 final tokens, 6.23 EFLOP, published acc1 79.36
python train.py --config configs/deit_s_tome.py:deit_ti
    0.73 GMACs, 41 final tokens, 1.69 EFLOP, published acc1 71.27
"""

from ml_collections import config_dict

from configs import deit_s


def get_config(size="deit_s"):
    """Every block merges, with proportional attention, trained as by its authors."""
    config = deit_s.get_config(size)
    config.reduction = tome()
    return config


def tome():
    """The fields of ToMe with the setting that the papers compare."""
    fields = config_dict.ConfigDict()
    fields.name = "tome"
    fields.r = 13  # tokens that a block merges away; at most half of those it has
    fields.inflection = 0.0  # -1: from 2 r in the first block to 0, 1: the reverse
    fields.r_list = config_dict.placeholder(tuple)  # block by block, overrides both
    fields.metric = "key"  # what is compared: "key", "query", "value", "token"
    return fields
