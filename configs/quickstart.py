"""A small ImagePiece on 1,797 handwritten digits: minutes on a laptop, no download.

python train.py --config configs/quickstart.py
"""

from configs import base


def get_config():
    """Conv stem, merging and pruning: DeiT-S's code path on 64 tokens."""
    config = base.get_config()
    config.image_size = 16
    config.num_classes = 10
    config.model.name = "vit_mini"
    config.model.stem = "conv"
    config.model.drop_path_rate = 0.0
    config.model.dtype = "float32"
    config.reduction = "imagepiece:merge_blocks=(0,1,3,4):prune_blocks=(2,5)"
    config.data.name = "digits"
    config.data.crop = "shift"
    config.data.shift = 1
    config.data.flip = False
    config.data.resize = "none"
    config.data.repeats = 1
    config.data.workers = 0
    config.data.threads = 0
    config.epochs = 40
    config.batch_size = 64
    config.lr = 1.6e-2  # 2e-3 at 64 images
    config.warmup_epochs = 4.0
    config.clip_grad_norm = 1.0
    config.augment.layers = 0
    config.augment.erase_prob = 0.0
    config.mixup = 0.0
    config.cutmix = 0.0
    config.ema_decay = 0.99
    config.eval_batch_size = 360
    config.eval_every_epochs = 4
    config.checkpoint_every_steps = 1000
    config.log_every_steps = 22
    return config
