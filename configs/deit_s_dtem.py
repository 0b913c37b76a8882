"""DTEM: ToMe by a learned embedding, trained alone (Lee & Hong, NeurIPS 2024).

python train.py --config configs/deit_s_dtem.py --config.init.weights=DEIT_S
    2.32 GMACs, 11 final tokens, 1.07 EFLOP, no published acc1
python train.py --config configs/deit_s_dtem.py:deit_ti --config.init.weights=DEIT_TI
    0.64 GMACs, 11 final tokens, 0.296 EFLOP, no published acc1

DEIT_S and DEIT_TI are trained dense weights; they do not change. The paper's abstract
has 79.85 for DeiT-S at 37.2 % fewer FLOPs than dense.
"""

from configs import deit_s


def get_config(size="deit_s"):
    """Train only the embeddings, with soft merging, for 30 epochs."""
    config = deit_s.get_config(f"{size},dtem")
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
    config.init.fresh = ("reducer",)  # the embeddings; all else comes from the weights
    return config
