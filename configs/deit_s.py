"""DeiT without reduction, by its authors' recipe.

python train.py --config configs/deit_s.py
    4.60 GMACs, 197 final tokens, published acc1 79.9
python train.py --config configs/deit_s.py:deit_ti
    1.25 GMACs, 197 final tokens, published acc1 72.2
python train.py --config configs/deit_s.py:deit_b
    17.56 GMACs, 197 final tokens, published acc1 81.8

The control of ImagePiece, which shows what its stem brings alone; not published:

python train.py --config configs/deit_s.py --config.model.stem=conv
    4.98 GMACs, 197 final tokens
"""

import difflib

from configs import base

SIZES = ("deit_ti", "deit_s", "deit_b")


def get_config(size="deit_s"):
    """The dense model."""
    if size not in SIZES:
        near = difflib.get_close_matches(size, SIZES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(SIZES)}"
        raise ValueError(f"{size!r} is not a size; {hint}")
    config = base.get_config()
    config.model.name = size
    return config
