"""Training in three functions: `plan_run`, `open_run` and `train`.

`plan_run` decides everything that needs no weights, `open_run` makes the first state,
and `train` is the loop; `cluster.keeper` saves, stops and resumes. Weights come from
the newest checkpoint in the workdir, else from `config.init.weights`, else the seed.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from imagepiece_jax.common import extras, parallel
from imagepiece_jax.models import cost
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.training import optimizer, report
from imagepiece_jax.training.cluster.checkpoint import RunProgress
from imagepiece_jax.training.cluster.keeper import Keeper, held_workdir
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.data import RunData
from imagepiece_jax.training.evaluation import Evaluation
from imagepiece_jax.training.initial_weights import InitialWeights
from imagepiece_jax.training.logging import RunLog, print_line
from imagepiece_jax.training.teacher import Teacher, create_teacher
from imagepiece_jax.training.train_step import (
    TrainState,
    batch_shapes,
    init_state,
    micro_batch_loss,
    step_counts,
    train_step,
)


def train_and_evaluate(
    config: RunConfig,
    workdir: str | os.PathLike,
    dry_run: bool = False,
) -> dict | None:
    """Train a config in `workdir`, or resume it; a complete run is only reported.

    dry_run: print plan, cost and memory, and write nothing
    Returns the metrics of the last evaluation; None for a dry run.
    Raises InputError for a config or file that does not fit, RunError if training
        cannot continue, Stopped after a signal.
    """
    with parallel.shared_errors():
        libraries = ("cv2", "matplotlib", "simplejpeg", "tensorboardX")
        extras.check_installed("training", *libraries)
    plan = plan_run(config, workdir, dry_run)
    with open_run(plan, dry_run) as run:
        print_line(report.data_text(plan.config, plan.data))
        if dry_run:
            print_line(report.dry_run_report(run))
            return None
        steps = plan.data.length.steps
        if run.is_complete:
            print_line(
                f"this run is complete: {steps} steps; there is nothing left to do"
            )
        elif run.step > 0:
            print_line(f"resuming from step {run.step} of {steps}")
        train(run)
        if parallel.is_main():
            print_line(
                report.final_table(plan.workdir, plan.config, plan.model, run.progress)
            )
        return run.progress.last


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """All decisions of a run before its first state."""

    workdir: pathlib.Path
    config: RunConfig  # completed: with normalization, crop and token counts
    model: ViT  # in evaluation; training may mask tokens instead
    dense: ViT  # without reduction
    data: RunData
    lr_schedule: Callable  # function step -> learning rate
    optimizer: optax.GradientTransformation
    initial: InitialWeights
    # Micro-batch loss. config.json does not name it, so a resume cannot check it.
    loss: Callable = micro_batch_loss

    def epoch_of_step(self, step: int) -> int:
        """The epoch, from 0, of `step`, from 1."""
        return (step - 1) // self.data.length.steps_per_epoch

    def changes_program(self, step: int) -> bool:
        """Whether `step` needs a new program: its epoch has other token counts."""
        # Only a keep rate by epoch changes the counts between epochs.
        epochs = self.epoch_of_step(step - 1), self.epoch_of_step(step)
        if epochs[0] == epochs[1]:
            return False
        model_before, model = map(self.config.create_train_model, epochs)
        return step_counts(model_before) != step_counts(model)


def plan_run(
    config: RunConfig,
    workdir: str | os.PathLike,
    dry_run: bool = False,
) -> RunPlan:
    """Plan a run in `workdir` without writing to it.

    dry_run: accept ImageNet's published image count in place of its images
    Raises InputError, in all processes, if config, files or workdir do not fit.
    """
    workdir = pathlib.Path(workdir)
    with parallel.shared_errors():
        initial = InitialWeights(config, workdir)
        config = initial.complete_config().with_counts()
        placement = parallel.process_placement(config.grad_accum_steps)
        model = config.create_model(parallel.DEVICE_AXIS)
        dense = config.create_dense()
        data = RunData(config, placement, dry_run)
        steps_per_epoch = data.length.steps_per_epoch
        groups = config.reduction.method.param_groups
        lr_schedule, transformation = optimizer.create_optimizer(
            config, steps_per_epoch, groups
        )
    return RunPlan(
        workdir, config, model, dense, data, lr_schedule, transformation, initial
    )


@dataclasses.dataclass
class Run:
    """A run between two steps."""

    plan: RunPlan
    keeper: Keeper
    state: TrainState  # on all devices
    teacher: Teacher | None
    frozen: Any  # teacher variables, on all devices
    progress: RunProgress
    step: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.step == self.plan.data.length.steps == self.progress.evaluated

    @property
    def lacks_evaluation(self) -> bool:
        """Whether a stop prevented the evaluation after the last step."""
        due = self.step > 0 and self.plan.data.length.evaluates_after(self.step)
        return due and self.progress.evaluated < self.step

    def compiled_step(self, epoch: int) -> parallel.MappedFunction:
        """Compile an epoch's training step for all devices.

        Returns a function (state, batch, teacher variables) -> (state, metrics). It
        overwrites its input state.
        """
        plan = self.plan
        config = plan.config
        step = functools.partial(
            train_step,
            run=config,
            model=config.create_train_model(epoch, parallel.DEVICE_AXIS),
            optimizer=plan.optimizer,
            lr_schedule=plan.lr_schedule,
            teacher_model=self.teacher,
            loss=plan.loss,
        )
        program = parallel.pmap(step, donate_argnums=(0,), program="training step")
        num_devices = parallel.device_count()
        micro_batches = config.grad_accum_steps
        micro_batch_size = config.batch_size // (num_devices * micro_batches)
        leading_axes = (num_devices, micro_batches, micro_batch_size)
        program.compile(self.state, batch_shapes(config, leading_axes), self.frozen)
        return program


@contextlib.contextmanager
def open_run(plan: RunPlan, dry_run: bool = False) -> Iterator["Run"]:
    """Context in which no other run uses the folder. Yields the Run.

    Mistakes are found before anything is written, and leave no folder behind.

    dry_run: neither write nor lock
    Raises InputError, in all processes, for weights or a checkpoint that do not fit.
    """
    with contextlib.ExitStack() as stack:
        with parallel.shared_errors():
            keeper = stack.enter_context(held_workdir(plan, dry_run))
            run = _begin_run(plan, keeper)
        yield run


def _begin_run(plan: RunPlan, keeper: Keeper) -> Run:
    """Make the Run from initial weights, or from a checkpoint."""
    config = plan.config
    initial = plan.initial
    names = plan.data.train.class_names
    initial.check_classes(names, keeper.has_checkpoint)
    teacher, teacher_variables = create_teacher(config, plan.dense, initial)
    teacher_record = teacher.record(teacher_variables) if teacher else None
    new_state = functools.partial(
        init_state,
        optimizer=plan.optimizer,
        with_ema=config.ema_decay > 0,
    )
    if keeper.has_checkpoint:  # shapes are enough: the checkpoint has the values
        shapes = variable_shapes(plan.model)
        state = jax.eval_shape(new_state, shapes)
    else:
        state = jax.jit(new_state)(initial.start_variables(plan.model))
    initial.free_weights()  # frees host memory for the training
    print_line(cost.cost_summary(plan.model, [plan.dense]))
    kinds = sorted({device.device_kind for device in jax.devices()})
    devices = f"{parallel.device_count()} ({', '.join(kinds)})"
    print_line(f"devices: {devices}; processes: {jax.process_count()}")
    state, progress, step = keeper.begin_run(
        state, teacher_variables, names, teacher_record
    )
    if keeper.has_checkpoint and plan.loss is not micro_batch_loss:
        print_line(
            f"step {step}, with the loss {getattr(plan.loss, '__name__', plan.loss)}"
        )
    state, teacher_variables = parallel.replicate((state, teacher_variables))
    return Run(plan, keeper, state, teacher, teacher_variables, progress, step)


def train(run: Run) -> None:
    """Take all remaining steps, and evaluate and save the run on the way.

    Raises Stopped after a signal, once the state is saved, and RunError if the run
    cannot continue.
    """
    if run.is_complete:
        return
    plan = run.plan
    keeper = run.keeper
    length = plan.data.length
    training = plan.data.training(steps=range(run.step, length.steps))
    saved = keeper.find_last_saved
    # On leaving, the reader closes first, then the log, then the checkpoints.
    with (
        keeper.guarded_steps() as request,
        RunLog(plan.workdir, plan.config, length, run.step, saved) as log,
        contextlib.closing(plan.data.read_ahead(training)) as batches,
    ):
        evaluation = Evaluation(run, log, request)
        keeper.stop_if_requested(run)  # arrived since `guarded_steps`
        # A signal stopped the run in this evaluation.
        if run.lacks_evaluation:
            run.progress = evaluation.after_step()
            keeper.after_step(run, log)

        program = None
        for batch in log.timed_batches(batches):
            step = run.step + 1
            if program is None or plan.changes_program(step):
                log.begin_program(step)
                with keeper.guarded_compilation(run, log):
                    if program is not None:
                        # Only an unreferenced program is unloaded.
                        program = None
                        parallel.forget_programs()
                    program = run.compiled_step(plan.epoch_of_step(step))

            # `take_metrics` ends a run that skips too many steps.
            with log.traced_step(step):
                run.state, metrics = program(run.state, batch, run.frozen)
            run.step = step
            log.take_metrics(step, metrics)

            if length.evaluates_after(step):
                run.progress = evaluation.after_step()
            keeper.after_step(run, log)
