"""ImagePiece + ToMe: ToMe's merging in place of pruning, with the same counts.

python train.py --config configs/deit_s_imagepiece_tome.py
    2.78 GMACs, 61 final tokens, 6.42 EFLOP, published acc1 80.08
python train.py --config configs/deit_s_imagepiece_tome.py:deit_ti
    0.73 GMACs, 61 final tokens, 1.69 EFLOP, no published acc1
"""

from configs import deit_s_imagepiece


def get_config(size="deit_s"):
    """ImagePiece's schedule; no patch is dropped."""
    return deit_s_imagepiece.get_config(size, "imagepiece_tome")
