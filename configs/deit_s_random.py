"""Random tokens at EViT's keep rate: a control.

python train.py --config configs/deit_s_random.py
    3.00 GMACs, 69 final tokens, 6.91 EFLOP, no published acc1
python train.py --config configs/deit_s_random.py:deit_ti
    0.81 GMACs, 69 final tokens, 1.87 EFLOP, no published acc1
"""

from configs import deit_s


def get_config(size="deit_s"):
    """Draw what is kept at random, in training and evaluation."""
    return deit_s.get_config(size, "random")
