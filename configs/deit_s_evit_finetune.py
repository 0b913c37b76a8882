"""EViT on a trained DeiT-S, keep .7, fused: 3.03 GMACs, 72 final tokens, 30 epochs.

python train.py --config configs/deit_s_evit_finetune.py --config.init.weights=FILE
"""

from configs import deit_s_evit_fused


def get_config():
    """The short variant of EViT's authors: small rates, all tokens gone at once."""
    config = deit_s_evit_fused.get_config()
    config.epochs = 30
    config.lr = 2e-5
    config.min_lr = 2e-6
    config.warmup_epochs = 0.0
    config.weight_decay = 1e-6
    config.model.drop_path_rate = 0.0
    config.reduction.rate_warmup_start = 0
    config.reduction.rate_warmup_epochs = 0
    return config
