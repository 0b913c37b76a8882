"""ImagePiece + DynamicViT: a learned score chooses the pruned tokens.

python train.py --config configs/deit_s_imagepiece_dynamicvit.py \\
        --config.init.weights=DENSE --config.teacher.weights=DENSE
    2.87 GMACs, 61 final tokens, 1.28 EFLOP, published acc1 80.11
python train.py --config configs/deit_s_imagepiece_dynamicvit.py:deit_ti \\
        --config.init.weights=DENSE --config.teacher.weights=DENSE
    0.75 GMACs, 61 final tokens, 0.340 EFLOP, no published acc1

DENSE is a trained dense model of the same size with the conv stem.
"""

from configs import deit_s_dynamicvit, deit_s_imagepiece


def get_config(size="deit_s"):
    """ImagePiece's schedule, DynamicViT's predictors and training."""
    config = deit_s_imagepiece.get_config(size, "imagepiece_dynamicvit")
    deit_s_dynamicvit.fine_tuning(config, size)
    return config
