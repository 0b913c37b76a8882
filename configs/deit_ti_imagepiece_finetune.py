"""ImagePiece on a public DeiT-Ti in 30 epochs.

python train.py --config configs/deit_ti_imagepiece_finetune.py \\
        --config.init.weights=FILE
    0.65 GMACs, 61 final tokens, 0.150 EFLOP, no published acc1

The run first prints the dense model's accuracy. The stem is the public weights' patch
stem, without local coherence bias. For other images, see configs/deit_ti_finetune.py.
"""

from configs import deit_ti_finetune


def get_config(size="deit_ti"):
    """Fine-tune the dense weights with ImagePiece's merging and pruning."""
    config = deit_ti_finetune.get_config(size)
    config.reduction = "imagepiece"
    return config
