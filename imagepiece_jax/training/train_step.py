"""One training step: a function of state and batch, inside `pmap`.

docs/training.md replaces its loss, `micro_batch_loss`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Num, PyTree

from imagepiece_jax.common import parallel
from imagepiece_jax.common.rng import Purpose, batch_key, sample_keys
from imagepiece_jax.data.augment import mixup, pipeline
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation.accuracy import correct_at
from imagepiece_jax.models.vit import Outputs, ViT
from imagepiece_jax.training import optimizer as optimizers
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.logging import STEP_METRICS
from imagepiece_jax.training.losses import distillation_loss, soft_cross_entropy
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


def batch_shapes(config: RunConfig, leading_axes: tuple[int, ...]) -> Batch:
    """Shapes of a loader batch; `leading_axes` are [A, m] or [devices, A, m]."""
    shape = (*leading_axes, config.image_size, config.image_size, 3)
    return {
        "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
        "label": jax.ShapeDtypeStruct(leading_axes, jnp.int32),
    }


def init_state(
    variables: Mapping, optimizer: optax.GradientTransformation, with_ema: bool
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
        # Copied, because a step donates its state: a buffer can be donated only once.
        ema=jax.tree.map(jnp.copy, averaged_variables) if with_ema else None,
        window={name: jnp.zeros((), jnp.float32) for name in WINDOW_METRICS},
        skipped=jnp.zeros((), jnp.int32),
    )


def micro_batch_loss(
    outputs: Outputs,
    teacher_outputs: Any,
    targets: Float[Array, "batch classes"],
    config: RunConfig,
    model: ViT,
    step: Int[Array, ""],
) -> tuple[Float[Array, ""], Metrics]:
    """Compute the loss of a micro-batch: (total, {name: logged term of the total}).

    The total adds the method's terms to the loss of labels and distillation.

    outputs: the student's; `states` has a TokenState after each block
    teacher_outputs: the teacher's Outputs, for the same images; None: no teacher
    targets: label probabilities, smoothed and mixed
    model: the student
    step: from 0; unused here, but another loss may change with it
    """
    if config.distill.is_active:
        label_loss, terms = distillation_loss(
            config.distill, outputs, targets, teacher_outputs.logits
        )
    else:
        label_loss = jnp.mean(soft_cross_entropy(outputs.logits, targets))
        terms = {}
    if compute_terms := config.reduction.method.loss:
        method_terms = compute_terms(outputs, teacher_outputs, plan=model.plan)
        terms = dict(**terms, **method_terms)  # TypeError for a name of both
    return sum(terms.values(), label_loss), terms


def train_step(
    state: TrainState,
    batch: Batch,
    teacher_variables: PyTree = None,
    *,
    config: RunConfig,
    model: ViT,
    optimizer: optax.GradientTransformation,
    lr_schedule: optimizers.Schedule,
    teacher: Teacher | None = None,
    loss: Callable = micro_batch_loss,
) -> tuple[TrainState, dict]:
    """Take one training step.

    A step with a non-finite loss or gradient norm is skipped: parameters, statistics,
    averages and optimizer moments stay. Step count and schedules advance.

    batch: this device's image uint8 [A, m, S, S, 3] and label int32 [A, m], with A
        micro-batches
    model: from `RunConfig.create_train_model`
    lr_schedule: here only for the metrics
    teacher: gets the student's augmented and mixed images; None: no teacher
    loss: `micro_batch_loss`, or a function with its arguments and results
    Returns (state, metrics). Metrics of the global batch: loss, grad_norm, lr, terms,
        `skipped` (skipped steps in a row, this step included), and `window` (sums over
        the steps since the last logged step; skipped steps only count in "skipped").
    Raises InputError, when traced, for a term with a name in `logging.STEP_METRICS`.
    """
    # `micro_batch_loss` reads logits only. Other losses may read tokens.
    reads_tokens = (
        loss is not micro_batch_loss or config.reduction.method.loss is not None
    )
    axis_name = parallel.DEVICE_AXIS
    model = model.with_execution(head_only=not reads_tokens, axis_name=axis_name)
    num_micro_batches, num_images = batch["label"].shape

    def add_micro_batch(carry, inputs):
        """Add a micro-batch's gradients and metrics to those of the earlier ones."""
        # A micro-batch starts from the statistics the micro-batch before it leaves.
        batch_stats, grads, metric_sums = carry
        micro_batch, micro_batch_index = inputs

        # Prepare. Draws depend on positions in the global batch, not on the devices.
        positions = parallel.micro_batch_positions(num_images, micro_batch_index)
        draw_keys = functools.partial(sample_keys, config.seed, state.step, positions)
        draw_augment_keys = functools.partial(draw_keys, Purpose.AUGMENT)
        images = pipeline.augment_batch(
            micro_batch["image"],
            config.augment,
            model.config.mean,
            model.config.std,
            draw_augment_keys,
        )
        targets = mixup.soft_targets(
            micro_batch["label"], config.num_classes, config.label_smoothing
        )

        # Mix image i with image B - 1 - i of the micro-batch over all devices. The key
        # is equal on all of them, because a micro-batch is mixed as a whole.
        step_mix_key = batch_key(config.seed, state.step, Purpose.MIX)
        mix_key = jax.random.fold_in(step_mix_key, micro_batch_index)
        height, width = images.shape[1:3]  # of [m, S, S, 3]
        mix = mixup.draw_mix(mix_key, height, width, config)
        if mix is not None:
            partners = parallel.reverse_batch((images, targets))
            images, targets = mixup.mix_batch(mix, (images, targets), partners)

        # Forward pass, loss and gradient.
        keys = {"drop_path": draw_keys(Purpose.DROP_PATH)}
        keys["reducer"] = draw_keys(Purpose.REDUCER)
        teacher_outputs = None
        if teacher is not None:
            teacher_outputs = teacher.compute_outputs(teacher_variables, images)

        def student_loss(params):
            outputs, new_variables = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                keys=keys,
                with_states=True,
                mutable=["batch_stats"],
            )
            micro_loss, terms = loss(
                outputs, teacher_outputs, targets, config, model, state.step
            )
            # Flax returns no collection that the model lacks: only a conv stem has it.
            new_stats = new_variables.get("batch_stats", {})
            return micro_loss, (outputs.logits, new_stats, terms)

        loss_and_gradient = jax.value_and_grad(student_loss, has_aux=True)
        (micro_loss, further_results), micro_grads = loss_and_gradient(state.params)
        logits, new_batch_stats, terms = further_results
        if taken_names := set(terms) & set(STEP_METRICS):
            raise InputError(f"loss has a term {min(taken_names)!r}, as each step does")
        grads = jax.tree.map(
            lambda mean, grad: mean + grad / num_micro_batches, grads, micro_grads
        )

        # Add up the metrics. A mixed image counts as the image with the larger share.
        labels = jnp.argmax(targets, axis=-1)

        def count_right(count):
            return jnp.sum(correct_at(logits, labels, count), dtype=jnp.float32)

        micro_sums = {
            "acc1": count_right(1),
            "acc5": count_right(min(5, config.num_classes)),
            "loss": micro_loss * num_images,
            "samples": jnp.float32(num_images),
            "skipped": jnp.float32(0),
        }
        metric_sums = jax.tree.map(jnp.add, metric_sums, micro_sums)
        return (new_batch_stats, grads, metric_sums), terms

    # Gradients, and metric sums with the window's fields, begin at 0.
    zeros = jax.tree.map(jnp.zeros_like, (state.params, state.window))
    carry = (state.batch_stats, *zeros)
    inputs = (batch, jnp.arange(num_micro_batches, dtype=jnp.int32))
    if num_micro_batches == 1:  # no loop; [0] is the micro-batch axis
        only_inputs = jax.tree.map(lambda array: array[0], inputs)
        carry, terms = add_micro_batch(carry, only_inputs)
    else:
        carry, terms = jax.lax.scan(add_micro_batch, carry, inputs)
    batch_stats, grads, metric_sums = carry

    # Exchange.
    if jax.lax.axis_size(axis_name) > 1:
        # Without the barrier XLA joins the gradients' exchange to the earlier exchange
        # of batch statistics. The stem's backward pass would then wait for megabytes
        # instead of a few numbers.
        grads, metric_sums, terms = jax.lax.optimization_barrier(
            (grads, metric_sums, terms)
        )
    grads = jax.lax.pmean(grads, axis_name)
    metric_sums = jax.lax.psum(metric_sums, axis_name)
    # A scan's terms have an axis of micro-batches.
    terms = jax.lax.pmean(jax.tree.map(jnp.mean, terms), axis_name)
    mean_loss = metric_sums["loss"] / metric_sums["samples"]
    grad_norm = optimizers.global_norm(grads)
    is_finite = jnp.isfinite(mean_loss) & jnp.isfinite(grad_norm)

    # Count the step. A window starts after a logged step.
    skipped_sums = dict.fromkeys(metric_sums, 0.0) | {"skipped": 1.0}
    step_sums = optax.tree.where(is_finite, metric_sums, skipped_sums)
    starts_window = state.step % config.log_every_steps == 0

    def add_step(window_sum, step_sum):
        return jnp.where(starts_window, step_sum, window_sum + step_sum)

    window = jax.tree.map(add_step, state.window, step_sums)
    num_skipped = jnp.where(is_finite, 0, state.skipped + 1)
    metrics = {"loss": mean_loss, "grad_norm": grad_norm, "lr": lr_schedule(state.step)}
    metrics |= {"terms": terms, "window": window, "skipped": num_skipped}

    # Update, unless the step is skipped.
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        variables = {"params": params, "batch_stats": batch_stats}
        ema = optimizers.moving_average(ema, variables, config.ema_decay)
    new_state = TrainState(
        step=state.step + 1,
        params=optax.tree.where(is_finite, params, state.params),
        batch_stats=optax.tree.where(is_finite, batch_stats, state.batch_stats),
        opt_state=optimizers.choose_opt_state(is_finite, opt_state, state.opt_state),
        ema=optax.tree.where(is_finite, ema, state.ema),
        window=window,
        skipped=num_skipped,
    )
    return new_state, metrics
