"""ImagePiece with a fresh conv stem on a public DeiT-Ti in 30 epochs.

python train.py --config configs/deit_ti_imagepiece_finetune_conv.py \\
        --config.init.weights=FILE
    0.73 GMACs, 61 final tokens, 0.169 EFLOP, no published acc1

The stem is new, and the blocks start from the weights; the paper trains both for 300
epochs. There is no accuracy before the training. For other images, see
configs/deit_ti_finetune.py, with "--config.init.fresh=('patch_embed', 'head')".
"""

from configs import deit_ti_imagepiece_finetune


def get_config(size="deit_ti"):
    """A higher rate than with the old stem, because the new one starts at random."""
    config = deit_ti_imagepiece_finetune.get_config(size)
    config.model.stem = "conv"
    config.init.fresh = ("patch_embed",)
    config.lr = 1e-4  # 5e-5 at 256 images
    config.warmup_epochs = 3.0
    return config
