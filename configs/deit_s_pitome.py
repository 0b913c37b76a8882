"""PiToMe: merge by energy in every block (Tran et al., NeurIPS 2024).

python train.py --config configs/deit_s_pitome.py
    2.76 GMACs, 69 final tokens, 6.37 EFLOP, no published acc1
python train.py --config configs/deit_s_pitome.py:deit_ti
    0.75 GMACs, 69 final tokens, 1.72 EFLOP, no published acc1
"""

from configs import deit_s


def get_config(size="deit_s"):
    """Its authors' keep rate; they use trained weights as they are, or fine-tune."""
    return deit_s.get_config(size, "pitome")
