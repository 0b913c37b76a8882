"""DTEM: ToMe by a learned embedding, trained alone (Lee & Hong, NeurIPS 2024).

python train.py --config configs/deit_s_dtem.py --config.init.weights=DEIT_S
    2.32 GMACs, 11 final tokens, 1.07 EFLOP, no published acc1
python train.py --config configs/deit_s_dtem.py:deit_ti --config.init.weights=DEIT_TI
    0.64 GMACs, 11 final tokens, 0.296 EFLOP, no published acc1

DEIT_S and DEIT_TI are trained dense weights, which stay as they are. Published for
DeiT-S, in the abstract: 79.85 at 37.2 % fewer FLOPs than dense.
"""

from configs import deit_s


def get_config(size="deit_s"):
    """30 epochs in which the embeddings alone learn, merging softly."""
    config = deit_s.get_config(size, "dtem")
    config.epochs = 30
    config.lr = 5e-5  # 1e-4 at 1,024 images
    config.min_lr = 1e-6
    config.warmup_epochs = 0.0
    config.weight_decay = 1e-4
    config.clip_grad_norm = 5.0
    config.label_smoothing = 0.0
    config.ema_decay = 0.0
    config.model.drop_path_rate = 0.0
    config.data.repeats = 1  # no repeated augmentation
    config.init.fresh = ("reducer",)  # the embeddings; the rest is given
    return config
