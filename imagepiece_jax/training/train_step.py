"""One training step: a function of state and batch, inside `pmap`.

`train_step` averages gradients (`accumulate_gradients`, `micro_batch_gradient`), counts
the step (`count_in_window`) and updates the state (`update_state`). docs/training.md
replaces its loss, `micro_batch_loss`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Num, PyTree

from imagepiece_jax.common import parallel
from imagepiece_jax.common.rng import Purpose, batch_key, sample_keys
from imagepiece_jax.data.augment import mixup, pipeline
from imagepiece_jax.data.normalize import NormalizedImages
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation.accuracy import correct_at
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.logging import STEP_METRICS
from imagepiece_jax.training.losses import distillation_loss, soft_cross_entropy
from imagepiece_jax.training.optimizer import (
    Optimizer,
    Schedule,
    choose_opt_state,
    global_norm,
    moving_average,
)
from imagepiece_jax.training.teacher import Teacher

Batch: TypeAlias = dict[str, Any]
Metrics: TypeAlias = dict[str, Num[Array, "..."]]


@struct.dataclass
class TrainState:
    """Everything a run carries between steps, and a checkpoint holds."""

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: optax.OptState
    ema: PyTree  # {"params", "batch_stats"} averaged, or None
    # In the state, so that a resumed run logs and stops like an uninterrupted run.
    window: dict[str, jax.Array]  # metric sums since the last logged step
    skipped: jax.Array  # skipped steps in a row, up to this step

    @property
    def variables(self) -> dict[str, Any]:
        return {"params": self.params, "batch_stats": self.batch_stats}


WINDOW_METRICS = ("loss", "acc1", "acc5", "samples", "skipped")


def batch_shapes(run: RunConfig, leading_axes: tuple[int, ...]) -> Batch:
    """Shapes of a loader batch; `leading_axes` are [A, m] or [devices, A, m]."""
    shape = (*leading_axes, run.image_size, run.image_size, 3)
    return {
        "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
        "label": jax.ShapeDtypeStruct(leading_axes, jnp.int32),
    }


def list_step_counts(model: ViT) -> tuple:
    """StepCounts per block; models with equal counts share a program."""
    return tuple(layer.counts for layer in model.plan)


def count_programs(run: RunConfig) -> int:
    """Count the different programs of a run's training steps."""
    models = map(run.create_train_model, range(run.epochs))
    return len(set(map(list_step_counts, models)))


def init_state(
    variables: Mapping[str, Any], optimizer: Optimizer, with_ema: bool
) -> TrainState:
    """Make the TrainState before the first training step."""
    params = variables["params"]
    batch_stats = variables.get("batch_stats", {})
    averaged_variables = {"params": params, "batch_stats": batch_stats}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, averaged_variables) if with_ema else None,
        window={name: jnp.zeros((), jnp.float32) for name in WINDOW_METRICS},
        skipped=jnp.zeros((), jnp.int32),
    )


def micro_batch_loss(
    student: tuple,
    teacher: tuple | None,
    targets: Float[Array, "batch classes"],
    run: RunConfig,
    model: ViT,
    step: Int[Array, ""],
) -> tuple[Float[Array, ""], Metrics]:
    """Compute the loss of a micro-batch: (total, {name: logged term of the total}).

    The total adds the method's terms to the loss of labels and distillation.

    student, teacher: (Outputs, TokenState after each block) for the same images;
        teacher None: the run has no teacher
    targets: label probabilities, smoothed and mixed
    model: the student
    step: from 0; unused here, but another loss may change with it
    """
    outputs, _ = student
    teacher_outputs: Any = teacher[0] if teacher else None
    if run.distill.is_active:
        loss, terms = distillation_loss(
            run.distill, outputs, targets, teacher_outputs.logits
        )
    else:
        loss = jnp.mean(soft_cross_entropy(outputs.logits, targets))
        terms = {}
    if method_loss := run.reduction.method.loss:
        method_terms = method_loss(outputs, teacher_outputs, plan=model.plan)
        for name in method_terms:
            if name in terms:  # one would replace the other
                raise InputError(
                    f"reduction {run.reduction} and distillation both have a loss term "
                    f"{name!r}"
                )
        terms |= method_terms
    return sum(terms.values(), loss), terms


def train_step(
    state: TrainState,
    batch: Batch,
    teacher_variables: PyTree = None,
    *,
    run: RunConfig,
    model: ViT,
    optimizer: Optimizer,
    lr_schedule: Schedule,
    teacher: Teacher | None = None,
    loss: Callable = micro_batch_loss,
) -> tuple[TrainState, dict]:
    """Take one training step.

    A step with a non-finite loss or gradient norm is skipped: parameters, statistics,
    averages and optimizer moments stay. Step count and schedules advance.

    batch: this device's image uint8 [A, m, S, S, 3] and label int32 [A, m], with A
        micro-batches
    teacher_variables: the teacher's, which are not trained
    teacher: gets the student's augmented and mixed images; None: no teacher
    model: from `RunConfig.create_train_model`
    lr_schedule: function step -> learning rate, here only for the metrics
    loss: `micro_batch_loss`, or a function with its arguments and results
    Returns (state, metrics). Metrics of the global batch: loss, grad_norm, lr, terms,
        `skipped` (skipped steps in a row, this step included), and `window` (sums over
        the steps since the last logged step; skipped steps only count in "skipped").
    Raises InputError, when traced, for a term with a name in `logging.STEP_METRICS`.
    """
    # `micro_batch_loss` reads logits only. Other losses may read tokens.
    reads_tokens = loss is not micro_batch_loss or run.reduction.method.loss is not None
    compute_gradient = functools.partial(
        micro_batch_gradient,
        state=state,
        teacher_variables=teacher_variables,
        run=run,
        model=model.with_execution(
            head_only=not reads_tokens, axis_name=parallel.DEVICE_AXIS
        ),
        teacher=teacher,
        loss=loss,
    )
    grads, batch_stats, metric_sums, terms = accumulate_gradients(
        compute_gradient, batch, state
    )
    if jax.lax.axis_size(parallel.DEVICE_AXIS) > 1:
        # Without the barrier XLA joins the gradients' exchange to the earlier exchange
        # of batch statistics. The stem's backward pass would then wait for megabytes
        # instead of a few numbers.
        grads, metric_sums, terms = jax.lax.optimization_barrier(
            (grads, metric_sums, terms)
        )
    grads = parallel.mean_over_devices(grads)
    metric_sums = parallel.sum_over_devices(metric_sums)
    mean_loss = metric_sums["loss"] / metric_sums["samples"]
    grad_norm = global_norm(grads)
    is_finite = jnp.isfinite(mean_loss) & jnp.isfinite(grad_norm)
    learning_rate = lr_schedule(state.step)
    # Before the update, which raises `state.step`.
    state = count_in_window(state, metric_sums, is_finite, run.log_every_steps)
    metrics = {
        "loss": mean_loss,
        "grad_norm": grad_norm,
        "lr": learning_rate,
        "terms": parallel.mean_over_devices(jax.tree.map(jnp.mean, terms)),
        "window": state.window,
        "skipped": state.skipped,
    }
    return update_state(state, grads, batch_stats, is_finite, optimizer, run), metrics


def accumulate_gradients(
    compute_gradient: Callable, batch: Batch, state: TrainState
) -> tuple[PyTree, PyTree, Metrics, Metrics]:
    """Average gradients and add up metric sums over the micro-batches of a batch.

    compute_gradient: `micro_batch_gradient` of (micro_batch, index, batch_stats)
    Returns (gradients, batch statistics, metric sums, terms); each term is [A] for A
        micro-batches, or [] for A = 1.
    """
    num_micro_batches = batch["label"].shape[0]

    def add_micro_batch(carry: tuple, inputs: tuple) -> tuple[tuple, Metrics]:
        # A micro-batch starts from the statistics the micro-batch before it leaves.
        batch_stats, grads, metric_sums = carry
        micro_grads, batch_stats, micro_sums, terms = compute_gradient(
            *inputs, batch_stats
        )
        grads = jax.tree.map(
            lambda grad_sum, g: grad_sum + g / num_micro_batches, grads, micro_grads
        )
        metric_sums = jax.tree.map(jnp.add, metric_sums, micro_sums)
        return (batch_stats, grads, metric_sums), terms

    zeros = jax.tree.map(jnp.zeros_like, (state.params, state.window))
    carry = (state.batch_stats, *zeros)
    inputs = (batch, jnp.arange(num_micro_batches, dtype=jnp.int32))
    if num_micro_batches == 1:
        carry, terms = add_micro_batch(carry, jax.tree.map(lambda x: x[0], inputs))
    else:
        carry, terms = jax.lax.scan(add_micro_batch, carry, inputs)
    batch_stats, grads, metric_sums = carry
    return grads, batch_stats, metric_sums, terms


def micro_batch_gradient(
    micro_batch: Batch,
    micro_batch_index: Int[Array, ""],
    batch_stats: PyTree,
    *,
    state: TrainState,
    teacher_variables: PyTree,
    run: RunConfig,
    model: ViT,
    teacher: Teacher | None,
    loss: Callable,
) -> tuple[PyTree, PyTree, Metrics, Metrics]:
    """Compute the gradient of one micro-batch on this device.

    micro_batch: image uint8 [m, S, S, 3] and label int32 [m]
    batch_stats: statistics before the forward pass
    state: the TrainState before the step
    Returns (gradients, statistics after the forward pass, metric sums over m images,
        {name: loss term}).
    """
    # Draws depend on positions in the global batch, not on the device count.
    num_images = len(micro_batch["label"])
    positions = parallel.micro_batch_positions(num_images, micro_batch_index)
    images, targets = prepare_micro_batch(
        micro_batch, positions, state.step, micro_batch_index, run, model
    )
    purposes = {"drop_path": Purpose.DROP_PATH, "reducer": Purpose.REDUCER}
    keys = {}
    for name, purpose in purposes.items():
        keys[name] = sample_keys(run.seed, state.step, positions, purpose)
    teacher_pair = None
    if teacher is not None:
        teacher_outputs = teacher.compute_outputs(teacher_variables, images)
        teacher_pair = teacher_outputs, teacher_outputs.states
        teacher_pair = jax.lax.stop_gradient(teacher_pair)

    def student_loss(params: PyTree) -> tuple[Float[Array, ""], tuple]:
        outputs, new_variables = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            keys=keys,
            with_states=True,
            mutable=["batch_stats"],
        )
        student_pair = outputs, outputs.states
        loss_value, terms = loss(
            student_pair, teacher_pair, targets, run, model, state.step
        )
        _check_term_names(terms)
        new_stats = new_variables.get("batch_stats", {})
        return loss_value, (outputs.logits, new_stats, terms)

    loss_and_gradient = jax.value_and_grad(student_loss, has_aux=True)
    (loss_value, (logits, new_stats, terms)), grads = loss_and_gradient(state.params)
    return grads, new_stats, _sum_metrics(loss_value, logits, targets), terms


def update_state(
    state: TrainState,
    grads: PyTree,
    batch_stats: PyTree,
    is_finite: Bool[Array, ""],
    optimizer: Optimizer,
    run: RunConfig,
) -> TrainState:
    """Apply the global batch's gradients; unless `is_finite`, no weight changes."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        variables = {"params": params, "batch_stats": batch_stats}
        ema = moving_average(ema, variables, run.ema_decay)
    return dataclasses.replace(
        state,
        step=state.step + 1,
        params=optax.tree.where(is_finite, params, state.params),
        batch_stats=optax.tree.where(is_finite, batch_stats, state.batch_stats),
        opt_state=choose_opt_state(is_finite, opt_state, state.opt_state),
        ema=optax.tree.where(is_finite, ema, state.ema),
    )


def count_in_window(
    state: TrainState,
    metric_sums: Metrics,
    is_finite: Bool[Array, ""],
    log_every_steps: int,
) -> TrainState:
    """Count a step, with its global sums, in the window and in `skipped`."""
    num_skipped = jnp.where(is_finite, 0, state.skipped + 1)
    skipped_sums = dict.fromkeys(metric_sums, 0.0) | {"skipped": 1.0}
    step_sums = optax.tree.where(is_finite, metric_sums, skipped_sums)
    # A window starts after a logged step.
    starts_window = state.step % log_every_steps == 0
    window = jax.tree.map(
        lambda old, new: jnp.where(starts_window, new, old + new),
        state.window,
        step_sums,
    )
    return dataclasses.replace(state, window=window, skipped=num_skipped)


def prepare_micro_batch(
    micro_batch: Batch,
    positions: Int[Array, " batch"],
    step: Int[Array, ""],
    micro_batch_index: Int[Array, ""],
    run: RunConfig,
    model: ViT,
) -> tuple[NormalizedImages, Float[Array, "batch classes"]]:
    """Normalize, augment and mix a micro-batch: (images, soft targets).

    micro_batch: image uint8 [m, S, S, 3] and label int32 [m]
    positions: image positions in the global batch
    """
    draw_keys = functools.partial(
        sample_keys, run.seed, step, positions, Purpose.AUGMENT
    )
    mean_and_std = (model.config.mean, model.config.std)
    images = pipeline.augment_batch(
        micro_batch["image"], run.augment, *mean_and_std, draw_keys
    )
    smoothing = run.label_smoothing
    targets = mixup.soft_targets(micro_batch["label"], run.num_classes, smoothing)
    return mix_micro_batch(images, targets, step, micro_batch_index, run)


def mix_micro_batch(
    images: NormalizedImages,
    targets: Float[Array, "batch classes"],
    step: Int[Array, ""],
    micro_batch_index: Int[Array, ""],
    run: RunConfig,
) -> tuple[NormalizedImages, Float[Array, "batch classes"]]:
    """Mix image i with image B - 1 - i of the micro-batch over all devices.

    Returns (images, targets); unchanged if mixup and cutmix are off.
    """
    # The key is equal on all devices: a micro-batch is mixed as a whole.
    key = jax.random.fold_in(batch_key(run.seed, step, Purpose.MIX), micro_batch_index)
    mix = mixup.draw_mix(
        key,
        *images.shape[1:3],
        mixup=run.mixup,
        cutmix=run.cutmix,
        prob=run.mixup_prob,
        switch_prob=run.mixup_switch_prob,
    )
    if mix is None:
        return images, targets
    partners = parallel.reverse_batch((images, targets))
    return mixup.mix_batch(mix, images, targets, *partners)


def _check_term_names(terms: Metrics) -> None:
    """Raise InputError for a loss term named like another metric of a step."""
    for name in terms:
        if name in STEP_METRICS:
            raise InputError(
                f"loss returns a term {name!r}, but a step already has a figure of "
                "this name"
            )


def _sum_metrics(
    loss: Float[Array, ""],
    logits: Float[Array, "batch classes"],
    targets: Float[Array, "batch classes"],
) -> Metrics:
    """Sum the metrics over this device's images."""
    num_samples, num_classes = targets.shape
    # A mixed image counts as the image with the larger share.
    labels = jnp.argmax(targets, axis=-1)
    return {
        "loss": loss * num_samples,
        "acc1": jnp.sum(correct_at(logits, labels, 1), dtype=jnp.float32),
        "acc5": jnp.sum(
            correct_at(logits, labels, min(5, num_classes)), dtype=jnp.float32
        ),
        "samples": jnp.float32(num_samples),
        "skipped": jnp.float32(0),
    }
