"""EViT on a trained DeiT in 30 epochs, with dropped tokens fused into one.

python train.py --config configs/deit_s_evit_finetune.py --config.init.weights=FILE
    3.03 GMACs, 72 final tokens, 0.699 EFLOP, no published acc1
"""

from ml_collections.config_dict import placeholder

from configs import deit_s


def get_config(size="deit_s"):
    """EViT's short variant: low learning rates, the final keep rate from the start."""
    config = deit_s.get_config(f"{size},evit:fuse_token=True")
    config.epochs = 30
    config.init.weights = placeholder(str)  # the trained weights
    config.lr = 2e-5
    config.min_lr = 2e-6  # not scaled: below 52 images a batch, it exceeds the peak
    config.warmup_epochs = 0.0
    config.weight_decay = 1e-6
    config.model.drop_path_rate = 0.0
    return config
