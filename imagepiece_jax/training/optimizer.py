"""DeiT's optimizer: learning rate, AdamW, decay mask and moving average.

AdamW with decoupled weight decay, a linear warm-up that overlaps the cosine (at the end
of the warm-up the cosine has already fallen a little), and a rate that is proportional
to the global batch.
"""

import jax
import jax.numpy as jnp
import optax

from imagepiece_jax.errors import InputError

REFERENCE_BATCH = 512  # `config.lr` is the rate for a global batch of this many images
NEVER_DECAYED = ("bias", "pos_embed", "cls_token", "dist_token", "reg_token")


def scaled_lr(lr, batch_size):
    """Peak rate for a global batch: `lr` is per 512 images (5e-4 at 1024: 1e-3)."""
    return lr * batch_size / REFERENCE_BATCH


def learning_rate(
    step,
    *,
    lr,
    min_lr,
    warmup_lr,
    warmup_epochs,
    epochs,
    steps_per_epoch,
    lr_offset=0,
):
    """Rate of iteration `step` (integer array of any shape) as float32 of that shape.

    With t in epochs: `warmup_lr + t (lr - warmup_lr) / warmup_epochs` below
    `warmup_epochs`, then `min_lr + (lr - min_lr) (1 + cos(pi t / epochs)) / 2`; past
    the last epoch it stays at `min_lr`. `lr` is the peak (see `scaled_lr`), the two
    other rates are absolute.

    `lr_offset=0` takes the fractional epoch, t = step / steps_per_epoch. `lr_offset=1`
    is what DeiT's published code does: one rate for a whole epoch e, at t = max(e - 1,
    0), so that epochs 0 and 1 both run at `warmup_lr`.
    """
    if lr_offset not in (0, 1):
        raise InputError(
            f"config.lr_offset is {lr_offset!r}; allowed are 0 (a rate for each "
            "iteration) and 1 (DeiT's: a rate for each epoch, one epoch late)"
        )
    if not 0 <= warmup_epochs <= epochs:
        raise InputError(
            f"config.warmup_epochs is {warmup_epochs}; allowed are 0 to config.epochs, "
            f"{epochs}"
        )
    # Whole epochs in integers: t is then exact where an epoch begins, on any device.
    epoch, rest = jnp.divmod(jnp.asarray(step), steps_per_epoch)
    if lr_offset:
        t = jnp.maximum(epoch - lr_offset, 0).astype(jnp.float32)
    else:
        t = epoch.astype(jnp.float32) + rest.astype(jnp.float32) / steps_per_epoch
    # (1 + cos x) / 2 as cos(x / 2)^2: the sum would cancel in the last epochs.
    half_angle = jnp.pi / 2 * jnp.minimum(t / epochs, 1.0)
    cosine = min_lr + (lr - min_lr) * jnp.cos(half_angle) ** 2
    if warmup_epochs == 0:
        return cosine
    warmup = warmup_lr + t * ((lr - warmup_lr) / warmup_epochs)
    return jnp.where(t < warmup_epochs, warmup, cosine)


def decay_mask(params):
    """True where weight decay acts: no 1-D parameter, bias, position or prefix token.

    1-D covers the scales of layer and batch norm. Same tree as `params`, Python bools.
    """

    def decays(path, leaf):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return leaf.ndim > 1 and not set(names) & set(NEVER_DECAYED)

    return jax.tree_util.tree_map_with_path(decays, params)


def adamw(schedule, *, weight_decay, b1, b2, eps, clip_norm):
    """AdamW as an optax transformation; `schedule` maps its step count to a rate.

    The decay is decoupled and multiplied by the rate, `p -= lr * weight_decay * p`, as
    in torch (the paper multiplies by the schedule's factor alone). Gradients are first
    scaled down to a global norm of `clip_norm`; 0.0 means no clipping.
    """
    if clip_norm < 0:
        raise InputError(
            f"config.clip_grad_norm is {clip_norm}; allowed are 0.0 (none) or more"
        )
    optimizer = optax.adamw(
        schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask
    )
    if clip_norm == 0:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)


def scale_by_group(group_of, rate, peak, steps_per_epoch):
    """Scale AdamW's updates, made with `rate(step)`, where a parameter has its own
    rate.

    `group_of(path)` is the Group of the parameter "blocks_3/attn/q/kernel", whose `lr`
    maps (the schedule's rate, its peak) to the rate it gets, and whose updates are zero
    in its first `frozen_epochs`. Moments are updated meanwhile, as with a rate of zero.
    """

    def factor(path, step):
        group = group_of(jax.tree_util.keystr(path, simple=True, separator="/"))
        if group is None or group.frozen_epochs == float("inf"):
            return 1.0 if group is None else 0.0
        thawed = step >= group.frozen_epochs * steps_per_epoch
        scale = 1.0
        if group.lr is not None:
            scale = group.lr(rate(step), peak) / jnp.maximum(rate(step), 1e-30)
        return jnp.where(thawed, scale, 0.0)

    def init(params):
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, u: (u * factor(path, state.count)).astype(u.dtype), updates
        )
        return scaled, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def global_norm(tree):
    """Root of the sum of the squares of all leaves together, float32 [].

    One sum over all of them: on GPUs one kernel, instead of one or two a leaf.
    """
    leaves = [leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.sum(jnp.concatenate(leaves) ** 2))


def ema(average, new, decay):
    """Moving average over any tree: `average + (1 - decay) (new - average)`.

    In this form an average that equals `new` stays equal to the last bit. Leaves keep
    the dtype of `average`.
    """
    return jax.tree.map(
        lambda a, n: a + ((1.0 - decay) * (n - a)).astype(a.dtype), average, new
    )


def skip_update(finite, new, old):
    """The optimizer's state `new` where `finite` (bool []), else `old`.

    Counts of schedules advance in any case, so that the rate stays that of the run's
    step; Adam's own count, which corrects its moments, stays with them.
    """

    def choose(new, old):
        if isinstance(new, optax.ScaleByScheduleState):
            return new
        return jnp.where(finite, new, old)

    def is_schedule(node):
        return isinstance(node, optax.ScaleByScheduleState)

    return jax.tree.map(choose, new, old, is_leaf=is_schedule)
