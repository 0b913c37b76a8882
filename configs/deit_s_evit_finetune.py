"""EViT on a trained DeiT in 30 epochs, the dropped tokens fused into one.

python train.py --config configs/deit_s_evit_finetune.py --config.init.weights=FILE
    3.03 GMACs, 72 final tokens, 0.699 EFLOP, no published acc1
"""

from ml_collections.config_dict import placeholder

from configs import deit_s


def get_config(size="deit_s"):
    """The short variant of EViT's authors: small rates, all tokens gone at once."""
    config = deit_s.get_config(size, "evit:fuse_token=True")
    config.epochs = 30
    config.init.weights = placeholder(str)  # the trained weights
    config.lr = 2e-5
    config.min_lr = 2e-6  # not scaled: the rate of fewer than 52 images rises to it
    config.warmup_epochs = 0.0
    config.weight_decay = 1e-6
    config.model.drop_path_rate = 0.0
    return config
