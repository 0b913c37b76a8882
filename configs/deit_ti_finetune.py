"""DeiT from public weights: 30 epochs instead of 300.

python train.py --config configs/deit_ti_finetune.py --config.init.weights=FILE
    1.25 GMACs, 197 final tokens, 0.289 EFLOP, no published acc1

With a reduction, here ImagePiece on the public weights' patch stem:

python train.py --config configs/deit_ti_finetune.py --config.init.weights=FILE \\
        --config.reduction=imagepiece
    0.65 GMACs, 61 final tokens, 0.150 EFLOP, no published acc1

The run first prints the weights' own accuracy. Images of other classes need a new head,
which has no accuracy yet; few images need a higher learning rate. CPUs are faster in
float32:

python train.py --config configs/deit_ti_finetune.py --config.init.weights=FILE \\
        --config.data.name=folder:PATH --config.num_classes=10 \\
        "--config.init.fresh=('head',)" \\
        --config.batch_size=64 --config.lr=8e-4 --config.epochs=4 \\
        --config.model.dtype=float32 --config.data.workers=0
"""

from ml_collections.config_dict import placeholder

from configs import base


def get_config(size="deit_ti"):
    """Low rates, little augmentation: the weights were trained on these images."""
    config = base.get_config()
    config.model.name = size
    config.model.drop_path_rate = 0.0
    config.data.area = (0.25, 1.0)
    config.data.repeats = 1
    config.augment.layers = 0
    config.augment.erase_prob = 0.0
    config.mixup = 0.0
    config.cutmix = 0.0
    config.epochs = 30
    config.batch_size = 256  # small enough for a thousand images
    config.lr = 2e-5  # 1e-5 at 256 images
    config.min_lr = 0.0  # neither is scaled by the batch, so both are 0
    config.warmup_lr = 0.0
    config.warmup_epochs = 1.0
    config.ema_decay = 0.0
    config.init.weights = placeholder(str)  # the trained weights
    return config
