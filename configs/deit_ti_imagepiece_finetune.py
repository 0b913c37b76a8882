"""ImagePiece on a public DeiT-Ti in 30 epochs.

python train.py --config configs/deit_ti_imagepiece_finetune.py \\
        --config.init.weights=FILE
    0.65 GMACs, 61 final tokens, 0.150 EFLOP, no published acc1

The dense model's accuracy comes first. No local coherence bias: the patch stem is what
public weights have. Another set of images: see configs/deit_ti_finetune.py.
"""

from configs import deit_ti_finetune


def get_config(size="deit_ti"):
    """Teach the weights to do without what is merged and pruned."""
    config = deit_ti_finetune.get_config(size)
    config.reduction = "imagepiece"
    return config
