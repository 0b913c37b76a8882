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
    config.model.depth = 2
    config.model.embed_dim = 32
    config.model.num_heads = 2
    config.model.drop_path_rate = 0.2
    config.mixup = 0.8
    config.cutmix = 1.0
    config.data.repeats = 3
    config.epochs = 3
    config.warmup_epochs = 1.0
    config.batch_size = 128
    config.grad_accum_steps = 2
    config.lr = 4e-3
    config.eval_batch_size = 120  # of 359 images: the last batch is padded
    config.eval_every_epochs = 1
    config.checkpoint_every_steps = 5
    config.log_every_steps = 1
    config.progress = False
    return _METHODS[name](config)


def _dense(config):
    """A plain recipe: 40 % of the digits are right after 132 steps."""
    config.reduction.merge_blocks = ()
    config.reduction.prune_blocks = ()
    config.model.drop_path_rate = 0.0
    config.mixup = 0.0
    config.cutmix = 0.0
    config.data.repeats = 1
    config.grad_accum_steps = 1
    config.epochs = 12
    config.eval_every_epochs = 12
    config.lr = 2e-2
    config.ema_decay = 0.9
    return config


def _evit(config):
    config.reduction = deit_s_evit.get_config().reduction
    config.reduction.blocks = (0, 1)
    config.reduction.rate_warmup_start = 0
    config.reduction.rate_warmup_epochs = 2  # keep 1, .85, then .7: three programs
    return config


def _imagepiece_dynamicvit(config):
    config.reduction = deit_s_imagepiece_dynamicvit.get_config().reduction
    config.reduction.merge_blocks = (0,)
    config.reduction.prune_blocks = (1,)
    config.reduction.frozen_epochs = 1.0
    config.init.fresh = ("reducer",)
    return config


_METHODS = {
    "dense": _dense,
    "evit": _evit,
    "imagepiece_dynamicvit": _imagepiece_dynamicvit,
}
