"""PiToMe: merge by energy in every block (Tran et al., NeurIPS 2024).

python train.py --config configs/deit_s_pitome.py
    2.76 GMACs, 69 final tokens, 6.37 EFLOP, no published acc1
python train.py --config configs/deit_s_pitome.py:deit_ti
    0.75 GMACs, 69 final tokens, 1.72 EFLOP, no published acc1
"""

from ml_collections import config_dict

from configs import deit_s


def get_config(size="deit_s"):
    """Its authors' keep rate; they use trained weights as they are, or fine-tune."""
    config = deit_s.get_config(size)
    config.reduction = config_dict.ConfigDict()
    config.reduction.name = "pitome"
    config.reduction.keep_rate = 0.9125  # of the image tokens, in every block
    config.reduction.late_first = False  # True: the halves exchanged, as with MAE
    config.reduction.metric = "key"  # what is compared; or "query", "value", "token"
    return config
