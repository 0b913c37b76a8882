"""DiffRate: prune and merge by searched rates (Chen et al., ICCV 2023).

Its published schedules are for trained weights as they are; a model can be trained with
them, too. Accuracies are those of the untouched weights.

python train.py --config configs/deit_s_diffrate.py
    2.90 GMACs, 3 final tokens, 6.70 EFLOP, published acc1 79.538
python train.py --config configs/deit_s_diffrate.py:deit_ti
    0.81 GMACs, 3 final tokens, 1.86 EFLOP, no published acc1
python train.py --config configs/deit_s_diffrate.py:deit_b
    11.52 GMACs, 3 final tokens, 26.6 EFLOP, published acc1 81.498
"""

from configs import deit_s


def get_config(size="deit_s"):
    """The schedule of its size that the authors report, trained by DeiT's recipe."""
    return deit_s.get_config(size, "diffrate")
