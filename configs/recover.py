"""A reduced model recovers by its own dense form, on a cluster: no labels are read.

python train.py --config configs/recover.py \\
        --config.init.weights=FILE --config.teacher.weights=FILE
    0.63 GMACs, 27 final tokens, 0.00803 EFLOP, no published acc1
python train.py --config configs/recover.py:deit_s \\
        --config.init.weights=FILE --config.teacher.weights=FILE
    2.30 GMACs, 27 final tokens, 0.0294 EFLOP, no published acc1

Both files are the same one. The loss and the trained parameters are those of
`imagepiece_jax.recover`, which needs a few hundred images and one machine; here is one
epoch of ImageNet at the rate of its 32 images a step, and untested at this size.
"""

from configs import base


def get_config(size="deit_ti"):
    """Half of the MACs, norms and biases, one epoch."""
    config = base.get_config()
    config.model.name = size
    config.model.drop_path_rate = 0.0
    config.reduction.update(name="auto", macs=0.5)
    config.optim.train = "biases"
    config.data.area = (0.4, 1.0)
    config.data.repeats = 1
    config.augment.layers = 0
    config.augment.erase_prob = 0.0
    config.label_smoothing = 0.0
    config.mixup = 0.0
    config.cutmix = 0.0
    config.epochs = 1
    config.batch_size = 256
    config.lr = 2e-3  # 1e-3 at 256 images
    config.min_lr = 0.0
    config.warmup_epochs = 0.0
    config.weight_decay = 0.0
    config.ema_decay = 0.0
    config.distill.kind = "soft"
    config.distill.temperature = 1.0  # the answers themselves are to come back
    config.distill.weight = 1.0
    config.distill.class_tokens = 0.5
    config.init.evaluate = True
    return config
