"""Config of the rehearsal: tiny runs with everything on that can differ on hosts.

train.py --config tools/rehearsal_config.py:evit
"""

from configs import deit_s_evit, deit_s_imagepiece_dynamicvit, quickstart

EPOCH = 11  # steps: 1,438 training digits, 128 at a step


def get_config(name):
    """Gradient accumulation, averages, batch norm, and all random draws.

    name: "evit", whose program changes with its keep rate; "imagepiece_dynamicvit",
    trained with masks and a teacher; "dense", the weights that both start from.
    """
    config = quickstart.get_config()  # digits, and the conv stem with its batch norm
    config.model.depth, config.model.embed_dim, config.model.num_heads = 2, 32, 2
    config.model.drop_path_rate = 0.2
    config.mixup, config.cutmix = 0.8, 1.0
    config.data.repeats = 3
    config.epochs, config.warmup_epochs = 3, 1.0
    config.batch_size, config.grad_accum_steps = 128, 2
    config.lr = 4e-3
    config.eval_batch_size = 120  # of 359 images: the last batch is padded
    config.eval_every_epochs = 1
    config.checkpoint_every_steps, config.log_every_steps = 5, 1
    config.pictures, config.progress = 4, False
    return _METHODS[name](config)


def _dense(config):
    """A plain recipe: 40 % of the digits are right after 132 steps."""
    config.reduction.merge_blocks = config.reduction.prune_blocks = ()
    config.model.drop_path_rate = config.mixup = config.cutmix = 0.0
    config.data.repeats = config.grad_accum_steps = 1
    config.epochs = config.eval_every_epochs = 12
    config.lr, config.ema_decay, config.pictures = 2e-2, 0.9, 0
    return config


def _evit(config):
    config.reduction = deit_s_evit.get_config().reduction
    config.reduction.blocks = (0, 1)
    config.reduction.rate_warmup_start = 0
    config.reduction.rate_warmup_epochs = 2  # keep 1, .85, then .7: three programs
    return config


def _imagepiece_dynamicvit(config):
    config.reduction = deit_s_imagepiece_dynamicvit.get_config().reduction
    config.reduction.merge_blocks, config.reduction.prune_blocks = (0,), (1,)
    config.reduction.frozen_epochs = 1.0
    config.init.fresh = ("reducer",)
    return config


_METHODS = {
    "dense": _dense,
    "evit": _evit,
    "imagepiece_dynamicvit": _imagepiece_dynamicvit,
}
