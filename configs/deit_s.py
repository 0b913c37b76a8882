"""DeiT without reduction, by its authors' recipe.

python train.py --config configs/deit_s.py
    4.60 GMACs, 197 final tokens, 10.6 EFLOP, published acc1 79.9
python train.py --config configs/deit_s.py:deit_ti
    1.25 GMACs, 197 final tokens, 2.89 EFLOP, published acc1 72.2
python train.py --config configs/deit_s.py:deit_b
    17.56 GMACs, 197 final tokens, 40.5 EFLOP, published acc1 81.8

The control of ImagePiece, which shows what its stem brings alone; not published:

python train.py --config configs/deit_s.py --config.model.stem=conv
    4.98 GMACs, 197 final tokens, 11.5 EFLOP, no published acc1
"""

from configs import base
from imagepiece_jax.errors import InputError

SIZES = ("deit_ti", "deit_s", "deit_b", "vit_mini")


def get_config(size="deit_s"):
    """The dense model."""
    if size not in SIZES:
        raise InputError(f"{size!r} is not a size; allowed are {', '.join(SIZES)}")
    config = base.get_config()
    config.model.name = size
    return config
