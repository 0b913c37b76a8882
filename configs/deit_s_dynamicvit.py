"""DynamicViT: masks from learned predictors (Rao et al., NeurIPS 2021).

python train.py --config configs/deit_s_dynamicvit.py \\
        --config.init.weights=DEIT_S --config.teacher.weights=DEIT_S
    2.98 GMACs, 68 final tokens, 1.45 EFLOP, published acc1 79.32
python train.py --config configs/deit_s_dynamicvit.py:deit_ti \\
        --config.init.weights=DEIT_TI --config.teacher.weights=DEIT_TI
    0.80 GMACs, 68 final tokens, 0.394 EFLOP, published acc1 71.20

DEIT_S and DEIT_TI are trained dense weights.
"""

from configs import deit_s


def get_config(size="deit_s"):
    """Train for 30 epochs from the dense model, which is also the teacher."""
    config = deit_s.get_config(f"{size},dynamicvit")
    fine_tuning(config, size)
    return config


def fine_tuning(config, size):
    """Set the fields that differ from DeiT's recipe; the learning rate is equal."""
    config.epochs = 30
    config.min_lr = 1e-6
    config.ema_decay = 0.9999
    config.model.drop_path_rate = 0.2 if size == "deit_b" else 0.0
    config.data.repeats = 1  # no repeated augmentation
    config.init.fresh = ("reducer",)  # the predictors; all else comes from the weights
    if size == "deit_b":
        config.reduction += ":ratio_weight=5.0"
