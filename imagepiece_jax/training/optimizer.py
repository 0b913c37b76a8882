"""DeiT's optimizer: learning rate, AdamW, decay mask and moving average.

AdamW with decoupled weight decay, a linear warm-up that overlaps the cosine (at the end
of the warm-up the cosine has already fallen a little), and a rate that is proportional
to the global batch.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import optax

from imagepiece_jax.config.run import InitConfig, OptimConfig, PartConfig
from imagepiece_jax.models.vit import ViT

NEVER_DECAYED = ("bias", "pos_embed", "cls_token", "dist_token", "reg_token")


def create(optim: OptimConfig, steps_per_epoch: int, param_groups=None):
    """(learning rate as a function of the step, optax transformation) of a run.

    param_groups: of a method whose parameters have rates of their own, see
        `scale_by_group`
    Raises InputError for a warm-up longer than the run.
    """
    if optim.warmup_epochs > optim.epochs:
        optim.refuse("warmup_epochs", f"0 to config.epochs, which is {optim.epochs}")
    rate = functools.partial(
        learning_rate, optim=optim, steps_per_epoch=steps_per_epoch
    )
    optimizer = adamw(optim, rate)
    if param_groups is not None:
        groups = scale_by_group(param_groups, rate, optim.peak_lr, steps_per_epoch)
        optimizer = optax.chain(optimizer, groups)
    return rate, optimizer


def learning_rate(step, optim: OptimConfig, steps_per_epoch: int):
    """Rate of iteration `step` (integer array of any shape) as float32 of that shape.

    With t in epochs: `warmup_lr + t (peak_lr - warmup_lr) / warmup_epochs` below
    `warmup_epochs`, then `min_lr + (peak_lr - min_lr) (1 + cos(pi t / epochs)) / 2`;
    past the last epoch it stays at `min_lr`.

    `lr_offset=0` takes the fractional epoch, t = step / steps_per_epoch. `lr_offset=1`
    is DeiT's published code: one rate for all of an epoch e, at t = max(e - 1,
    0), so that epochs 0 and 1 both run at `warmup_lr`.
    """
    # Whole epochs in integers: t is then exact where an epoch begins, on any device.
    epoch, rest = jnp.divmod(jnp.asarray(step), steps_per_epoch)
    if optim.lr_offset:
        t = jnp.maximum(epoch - optim.lr_offset, 0).astype(jnp.float32)
    else:
        t = epoch.astype(jnp.float32) + rest.astype(jnp.float32) / steps_per_epoch
    # (1 + cos x) / 2 as cos(x / 2)^2: the sum would cancel in the last epochs.
    half_angle = jnp.pi / 2 * jnp.minimum(t / optim.epochs, 1.0)
    cosine = optim.min_lr + (optim.peak_lr - optim.min_lr) * jnp.cos(half_angle) ** 2
    if optim.warmup_epochs == 0:
        return cosine
    rise = (optim.peak_lr - optim.warmup_lr) / optim.warmup_epochs
    return jnp.where(t < optim.warmup_epochs, optim.warmup_lr + t * rise, cosine)


def decay_mask(params):
    """True where weight decay acts: on no 1-D parameter, bias, position, prefix token.

    1-D covers the scales of layer and batch norm. The tree is that of `params`, of
    Python bools.
    """

    def decays(path, leaf):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return leaf.ndim > 1 and not set(names) & set(NEVER_DECAYED)

    return jax.tree_util.tree_map_with_path(decays, params)


def check_part(part: PartConfig, init: InitConfig, model: ViT):
    """Raise InputError where only a part is trained, but other parts have to learn."""
    if part.train == "all":
        return
    if model.has_selectors:
        problem = f"is {part.train!r}, but the reduction has selectors that learn"
        part.refuse("train", "'all'", problem)
    if init.fresh or not init.weights:
        drawn = ", ".join(init.fresh) or "all weights"
        problem = f"is {part.train!r}, but what is drawn anew ({drawn}) has to learn"
        part.refuse("train", "'all'", problem)


def trained_part(params, which: str):
    """The parameters that are trained, in the tree of all, with None for the others.

    JAX takes None for an empty tree, so that gradients, moments and exchanges between
    devices exist only for what is trained.

    which: one of `config.TRAINED`
    """
    if which == "all":
        return params

    def chosen(path, leaf):
        *module, name = (entry.key for entry in path)
        siblings = functools.reduce(operator.getitem, module, params)
        of_norm = "scale" in siblings
        of_vector = which == "biases" and name in ("bias", "gamma")
        return leaf if of_norm or of_vector else None

    return jax.tree_util.tree_map_with_path(chosen, params)


def with_trained(params, trained):
    """`params`, with those of a `trained_part` in place of their own."""
    return jax.tree.map(
        lambda new, old: old if new is None else new,
        trained,
        params,
        is_leaf=lambda leaf: leaf is None,
    )


def adamw(optim: OptimConfig, rate):
    """AdamW as an optax transformation; `rate` maps its step count to a rate.

    The decay is decoupled and multiplied by the rate, `p -= lr * weight_decay * p`, as
    in torch (the paper multiplies by only the schedule's factor). Gradients are first
    scaled down to a global norm of `clip_grad_norm`; 0.0 means no clipping.
    """
    b1, b2 = optim.betas
    optimizer = optax.adamw(
        rate,
        b1=b1,
        b2=b2,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        mask=decay_mask,
    )
    if optim.clip_grad_norm == 0:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(optim.clip_grad_norm), optimizer)


def scale_by_group(group_of, rate, peak, steps_per_epoch):
    """Scale AdamW's updates where a parameter has a rate of its own.

    group_of: from a path ("blocks_3/attn/q/kernel") to its ParamGroup, or None. The
        group's `lr` maps (the schedule's rate, its peak) to its rate; updates are zero
        in its first `frozen_epochs`, in which moments change, as with a rate of zero
    rate: the schedule's, by step, with which the updates were made
    peak: the schedule's highest rate
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

    One sum over all of them: on GPUs one kernel, instead of one or two per leaf.
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
