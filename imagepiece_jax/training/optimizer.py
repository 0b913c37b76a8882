"""DeiT's optimizer: learning rate, AdamW, weight decay, moving average.

The learning rate is proportional to the global batch. It rises linearly in the warm-up,
then follows a cosine that began with the run: the cosine has already fallen a little at
the end of the warm-up.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from imagepiece_jax.reduction.methods.method import ParamGroup
from imagepiece_jax.training.config import RunConfig

Optimizer: TypeAlias = optax.GradientTransformation
Schedule: TypeAlias = Callable[[Any], Any]  # training step -> learning rate
# Parameter path, such as "blocks_3/attn/q/kernel" -> its group, or None.
GroupOf: TypeAlias = Callable[[str], ParamGroup | None]
# Names of parameters without weight decay, beside all 1-D parameters.
NEVER_DECAYED = ("bias", "pos_embed", "cls_token", "dist_token", "reg_token")


def create_optimizer(
    config: RunConfig, steps_per_epoch: int
) -> tuple[Schedule, Optimizer]:
    """Create the learning rate's schedule and the optimizer."""
    lr_schedule = functools.partial(
        learning_rate, config=config, steps_per_epoch=steps_per_epoch
    )
    optimizer = create_adamw(config, lr_schedule)
    # Learned methods give some parameters their own rates.
    if groups := config.reduction.method.param_groups:
        # Frozen parameters leave the clipping. Groups scale the finished update.
        optimizer = zero_frozen_gradients(optimizer, groups)
        scaling = scale_by_group(groups, lr_schedule, config.peak_lr, steps_per_epoch)
        optimizer = optax.chain(optimizer, scaling)
    return lr_schedule, optimizer


def learning_rate(
    step: int | Int[Array, "*steps"], config: RunConfig, steps_per_epoch: int
) -> Float[Array, "*steps"]:
    """Learning rate at `step`, float32.

    With t in epochs: `warmup_lr + t (peak_lr - warmup_lr) / warmup_epochs` below
    `warmup_epochs`, then `min_lr + (peak_lr - min_lr) (1 + cos(pi t / epochs)) / 2`;
    past the last epoch it stays at `min_lr`.

    `lr_offset=0` takes the fractional epoch, t = step / steps_per_epoch. `lr_offset=1`
    is DeiT's published code: one rate per epoch e, at t = max(e - 1, 0), so epochs 0
    and 1 both run at `warmup_lr`.
    """
    # Whole epochs in integers: t is then exact where an epoch begins, on any device.
    epoch, remainder = jnp.divmod(jnp.asarray(step), steps_per_epoch)
    if config.lr_offset:
        t = jnp.maximum(epoch - config.lr_offset, 0).astype(jnp.float32)
    else:
        t = epoch.astype(jnp.float32) + remainder.astype(jnp.float32) / steps_per_epoch
    # (1 + cos x) / 2 as cos(x / 2)^2: the sum would cancel in the last epochs.
    half_angle = jnp.pi / 2 * jnp.minimum(t / config.epochs, 1.0)
    lr_range = config.peak_lr - config.min_lr
    cosine_rate = config.min_lr + lr_range * jnp.cos(half_angle) ** 2
    if config.warmup_epochs == 0:
        return cosine_rate
    rise_per_epoch = (config.peak_lr - config.warmup_lr) / config.warmup_epochs
    return jnp.where(
        t < config.warmup_epochs, config.warmup_lr + t * rise_per_epoch, cosine_rate
    )


def decay_mask(params: optax.Params) -> PyTree:
    """Whether weight decay applies, as a tree of bools like `params`."""

    def has_decay(path, leaf):
        path_names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        # 1-D parameters are biases and norm scales. Positions and prefix tokens have
        # more dimensions, so they are named.
        return leaf.ndim > 1 and not set(path_names) & set(NEVER_DECAYED)

    return jax.tree_util.tree_map_with_path(has_decay, params)


def create_adamw(config: RunConfig, lr_schedule: Schedule) -> Optimizer:
    """AdamW after gradient clipping."""
    # The decay is decoupled and multiplied by the rate, `p -= lr * weight_decay * p`,
    # as in torch. AdamW's paper multiplies by only the schedule's factor.
    options = {"weight_decay": config.weight_decay, "mask": decay_mask}
    optimizer = optax.adamw(lr_schedule, *config.betas, config.eps, **options)
    if config.clip_grad_norm == 0:  # no clipping
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_grad_norm), optimizer)


def zero_frozen_gradients(optimizer: Optimizer, group_of: GroupOf) -> Optimizer:
    """Give frozen parameters zero gradients, so that clipping ignores them."""

    def zero_frozen(path, gradient):
        group = _find_group(group_of, path)
        if group is not None and group.is_frozen:
            return jnp.zeros_like(gradient)
        return gradient

    def update(gradients, state, params=None):
        gradients = jax.tree_util.tree_map_with_path(zero_frozen, gradients)
        return optimizer.update(gradients, state, params)

    return optax.GradientTransformation(optimizer.init, update)  # pyrefly: ignore


def scale_by_group(
    group_of: GroupOf, lr_schedule: Schedule, peak_lr: float, steps_per_epoch: int
) -> Optimizer:
    """Scale updates by their group's learning rate."""

    def update_scale(path, step):
        group = _find_group(group_of, path)
        if group is None:
            return 1.0
        if group.is_frozen:
            return 0.0
        # In frozen epochs AdamW's moments change, as with a rate of 0.
        is_thawed = step >= group.frozen_epochs * steps_per_epoch
        # AdamW has applied the schedule's rate: divide by it, multiply by the group's.
        scale = 1.0
        if group.lr is not None:
            group_lr = group.lr(lr_schedule(step), peak_lr)
            scale = group_lr / jnp.maximum(lr_schedule(step), 1e-30)  # it may be 0
        return jnp.where(is_thawed, scale, 0.0)

    def init(params):
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        def scale_leaf(path, leaf):
            return (leaf * update_scale(path, state.count)).astype(leaf.dtype)

        scaled_updates = jax.tree_util.tree_map_with_path(scale_leaf, updates)
        return scaled_updates, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def _find_group(group_of, path):
    return group_of(jax.tree_util.keystr(path, simple=True, separator="/"))


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """The norm of all leaves together, float32."""
    # One sum over all leaves is one kernel on GPUs.
    leaves = [leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.sum(jnp.concatenate(leaves) ** 2))


def moving_average(average: PyTree, values: PyTree, decay: float) -> PyTree:
    """Moving average over any tree: `average + (1 - decay) (values - average)`."""

    # In this form an average equal to `values` stays exactly equal. Leaves keep the
    # dtype of `average`.
    def move(mean, value):
        return mean + ((1.0 - decay) * (value - mean)).astype(mean.dtype)

    return jax.tree.map(move, average, values)


def choose_opt_state(
    is_finite: Bool[Array, ""], new_state: PyTree, old_state: PyTree
) -> PyTree:
    """Choose the state after a step: new_state if `is_finite`, else old_state."""
    where_finite = functools.partial(jnp.where, is_finite)

    # A skipped step still counts in schedules, so the rate follows the run's step.
    # Adam's own count stays, because it corrects the moments.
    def is_schedule(node):
        return isinstance(node, optax.ScaleByScheduleState)

    def choose_node(new_node, old_node):
        return new_node if is_schedule(new_node) else where_finite(new_node, old_node)

    return jax.tree.map(choose_node, new_state, old_state, is_leaf=is_schedule)
