"""DeiT-Ti on a thousand images of 160 pixels: 4 epochs of 31 steps.

python train.py --config configs/deit_ti_finetune_small.py --config.init.weights=FILE \\
        --config.data.name=folder:PATH --config.num_classes=10 \\
        "--config.init.fresh=('head',)"
    0.60 GMACs, 101 final tokens

`python -m experiments ... --small` trains every method this way, each in minutes on two
CPU cores. 10 x 10 patches are enough for every method's token counts.
"""

from configs import deit_ti_finetune


def get_config(size="deit_ti"):
    """Short epochs of small batches, in float32, which is faster on CPUs."""
    config = deit_ti_finetune.get_config(size)
    config.model.dtype = "float32"
    config.data.workers = 0
    config.data.threads = 0
    config.epochs = 4
    config.batch_size = 32
    config.eval_batch_size = 100
    config.image_size = 160
    config.lr = 1.6e-3  # 1e-4 at 32 images
    return config
