"""TokenLearner: 16 learned mixtures take the place of all tokens (Ryoo et al., 2021).

python train.py --config configs/deit_s_token_learner.py
    2.86 GMACs, 17 final tokens, 6.61 EFLOP, published acc1 79.01 (ImagePiece's authors)
python train.py --config configs/deit_s_token_learner.py:deit_ti
    0.78 GMACs, 17 final tokens, 1.81 EFLOP, no published acc1
"""

from configs import deit_s


def get_config(size="deit_s"):
    """Version 1.1; the class token bypasses it."""
    return deit_s.get_config(size, "token_learner")
