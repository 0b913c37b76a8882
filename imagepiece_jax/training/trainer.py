"""Training in three functions: `set_up_run`, `open_run` and `train`.

`set_up_run` decides everything that needs no weights, `open_run` makes the first state,
and `train` is the loop. Weights come from the newest checkpoint in the workdir, else
from `config.init.weights`, else the seed.
"""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator

import jax
import optax
from jaxtyping import PyTree

from imagepiece_jax.common import extras, files, parallel
from imagepiece_jax.common.files import AnyPath
from imagepiece_jax.errors import InputError, Stopped
from imagepiece_jax.evaluation import accuracy
from imagepiece_jax.models.variables import variable_shapes, variables_digest
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.training import report, train_step
from imagepiece_jax.training.cluster import job, run_dir
from imagepiece_jax.training.cluster.checkpoint import Checkpoints, RunProgress
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.data import RunData
from imagepiece_jax.training.initial_weights import InitialWeights
from imagepiece_jax.training.logging import RunLog, print_line
from imagepiece_jax.training.optimizer import create_optimizer
from imagepiece_jax.training.teacher import Teacher, create_teacher


def train_and_evaluate(
    config: RunConfig, workdir: str | os.PathLike, dry_run: bool = False
) -> dict | None:
    """Train a config in `workdir`, or resume its run; an ended run is only reported.

    dry_run: print token counts, cost and memory, and write nothing
    Returns the metrics of the last evaluation; None for a dry run.
    Raises InputError for a config or file that does not fit, RunError if training
        cannot continue, Stopped after a signal.
    """
    with parallel.shared_errors():
        extras.check_installed("training", "matplotlib", "simplejpeg", "tensorboardX")
    setup = set_up_run(config, workdir, dry_run)
    print_line(report.describe_setup(setup))
    with open_run(setup, dry_run) as run:
        if dry_run:
            print_line(report.describe_dry_run(run))
            return None
        steps = setup.data.length.steps
        if run.is_complete:
            print_line(f"this run is complete: {steps} steps; nothing is left to do")
        elif run.step > 0:
            print_line(f"resuming from step {run.step} of {steps}")
        train(run)
        if parallel.is_main():
            print_line(report.describe_results(run))
        return run.progress.last


@dataclasses.dataclass(frozen=True)
class RunSetup:
    """All decisions of a run before its first state."""

    workdir: pathlib.Path
    config: RunConfig  # completed: with normalization, crop and token counts
    model: ViT  # in evaluation; training may mask tokens instead
    dense_model: ViT  # without reduction
    data: RunData
    lr_schedule: Callable  # function step -> learning rate
    optimizer: optax.GradientTransformation
    initial_weights: InitialWeights
    # Micro-batch loss. config.json does not name it, so a resume cannot check it.
    loss: Callable = train_step.micro_batch_loss

    def find_epoch(self, step: int) -> int:
        """The epoch, from 0, of `step`, from 1."""
        return (step - 1) // self.data.length.steps_per_epoch

    def changes_program(self, step: int) -> bool:
        """Whether `step` needs a new program: its epoch has other token counts."""
        epochs = (self.find_epoch(step - 1), self.find_epoch(step))
        if epochs[0] == epochs[1]:
            return False
        # Only a keep rate by epoch changes the counts between epochs.
        plans = [self.config.create_train_model(epoch).plan for epoch in epochs]
        counts_before, counts_now = (
            [block_plan.counts for block_plan in plan] for plan in plans
        )
        return counts_before != counts_now


def set_up_run(config: RunConfig, workdir: AnyPath, dry_run: bool = False) -> RunSetup:
    """Set up a run in `workdir` without writing to it.

    dry_run: accept ImageNet's published image count in place of its images
    Raises InputError, in all processes, if config, files or workdir do not fit.
    """
    workdir = pathlib.Path(workdir)
    with parallel.shared_errors():
        weights = InitialWeights(config, workdir)
        full_config = weights.complete_config().with_counts()
        placement = parallel.process_placement(full_config.grad_accum_steps)
        model = full_config.create_model()
        dense_model = full_config.create_dense_model()
        data = RunData(full_config, placement, dry_run)
        steps_per_epoch = data.length.steps_per_epoch
        lr_schedule, optimizer = create_optimizer(full_config, steps_per_epoch)
    return RunSetup(
        workdir, full_config, model, dense_model, data, lr_schedule, optimizer, weights
    )


@dataclasses.dataclass
class Run:
    """A run between two steps."""

    setup: RunSetup
    checkpoints: Checkpoints
    state: train_step.TrainState  # on all devices
    teacher: Teacher | None
    teacher_variables: PyTree  # on all devices; they are not trained
    progress: RunProgress
    step: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.step == self.setup.data.length.steps

    def save(self) -> None:
        """Save the run after its step; also as "best", if this step is best."""
        state = parallel.unreplicate(self.state)
        metadata = dataclasses.asdict(self.progress)
        # First, because a run that resumes from this step saves no "best" of it.
        if self.progress.best["step"] == self.step:
            self.checkpoints.save(self.step, state, metadata, "best")
        self.checkpoints.save(self.step, state, metadata)

    def compile_step(self, epoch: int) -> parallel.MappedFunction:
        """Compile an epoch's training step for all devices.

        Returns a function (state, batch, teacher variables) -> (state, metrics). It
        overwrites its input state.
        """
        setup = self.setup
        config = setup.config
        step_function = functools.partial(
            train_step.train_step,
            config=config,
            model=config.create_train_model(epoch),
            optimizer=setup.optimizer,
            lr_schedule=setup.lr_schedule,
            teacher=self.teacher,
            loss=setup.loss,
        )
        program = parallel.pmap(
            step_function, donate_argnums=(0,), program_name="training step"
        )
        batch_axes = (parallel.device_count(), config.grad_accum_steps)
        micro_batch_size = config.batch_size // math.prod(batch_axes)
        leading_axes = (*batch_axes, micro_batch_size)
        abstract_batch = train_step.batch_shapes(config, leading_axes)
        program.compile(self.state, abstract_batch, self.teacher_variables)
        return program


@contextlib.contextmanager
def open_run(setup: RunSetup, dry_run: bool = False) -> Iterator["Run"]:
    """Context in which no other run uses the folder; a mistake leaves no folder.

    dry_run: neither write nor lock
    Raises InputError, in all processes, for weights or a checkpoint that do not fit,
        and if the folder is in use or belongs to another run.
    """
    config_fields = setup.config.to_dict()
    with contextlib.ExitStack() as stack:
        with parallel.shared_errors():
            job.check_same_settings(dry_run, config_fields, setup.model, setup.data)
            run_dir.check_config(setup.workdir, config_fields)
            if parallel.is_main() and not dry_run:
                stack.enter_context(files.locked_folder("workdir", setup.workdir))
            run = _begin_run(setup)
            if parallel.is_main() and not dry_run:  # nothing is written before
                class_names = setup.data.train_source.class_names
                run_dir.record_start(setup.workdir, config_fields, class_names)
        yield run


def _begin_run(setup):
    """Make the first state of a run, or read its newest checkpoint."""
    checkpoints = Checkpoints(setup.workdir, setup.config.keep_every_steps)
    # Process 0 looks, because a network file system may show other processes less.
    resumes = parallel.share_main_decision(lambda: run_dir.has_steps(setup.workdir))
    initial_weights = setup.initial_weights
    initial_weights.check_classes(setup.data.train_source.class_names, resumes)
    teacher, teacher_variables = create_teacher(
        setup.config, setup.dense_model, initial_weights
    )
    has_ema = setup.config.ema_decay > 0
    make_state = functools.partial(
        train_step.init_state, optimizer=setup.optimizer, with_ema=has_ema
    )
    state = None
    if not resumes:
        state = jax.jit(make_state)(initial_weights.make_initial_variables(setup.model))
    initial_weights.free_weights()  # host memory, which the training needs
    progress = RunProgress(
        setup.data.find_digests(),
        teacher=variables_digest(teacher_variables),
        normalization=[*setup.model.config.mean, *setup.model.config.std],
    )
    step = 0
    if resumes:
        # Only shapes, because the checkpoint has the values.
        abstract_state = jax.eval_shape(make_state, variable_shapes(setup.model))
        state, saved_fields, step = checkpoints.restore(abstract_state)
        problems = {
            "digest": "config.data.name has other images",
            "teacher": "config.teacher.weights is another teacher",
            # Somebody may have edited config.json, which fills an empty mean and std.
            "normalization": "config.model has another mean or std",
        }
        for field, problem in problems.items():
            if saved_fields.get(field) != getattr(progress, field):
                problem += f" than the run in {setup.workdir}"
                raise InputError(f"{problem}; {run_dir.CHOOSE_OTHER_WORKDIR}")
        progress = RunProgress(**saved_fields)
    job.check_same_start(step, (state, teacher_variables))
    state, teacher_variables = parallel.replicate((state, teacher_variables))
    return Run(setup, checkpoints, state, teacher, teacher_variables, progress, step)


def evaluate_run(run: Run, eval_step: accuracy.EvalStep, log: RunLog) -> RunProgress:
    """Evaluate the run between two steps; return its new RunProgress."""
    log.flush()  # the step's line, before the evaluation's
    # Weights [0] and averages [1] are evaluated in one pass over the images.
    variables_of_models = [run.state.variables]
    if run.state.ema is not None:
        variables_of_models.append(run.state.ema)
    data = run.setup.data
    with contextlib.closing(data.read_ahead(data.val_batches)) as reader:
        results = accuracy.evaluate_models(eval_step, variables_of_models, reader)
    metrics = results[0].metrics
    if run.state.ema is not None:
        for name in ("acc1", "acc5", "loss"):
            metrics[f"ema_{name}"] = results[1].metrics[name]
    log.write_evaluation(run.step, metrics)
    log.restart_clock()
    # A test split chooses no checkpoint.
    may_choose = data.val_source.split != "test"
    return run.progress.with_evaluation(run.step, metrics, may_choose)


def train(run: Run) -> None:
    """Take all remaining steps, and evaluate and save the run on the way.

    Raises Stopped after a signal, once the state is saved, and RunError if the run
    cannot continue.
    """
    if run.is_complete:
        return
    setup = run.setup
    length = setup.data.length
    first_step = run.step + 1
    # Both compile before a signal waits for the end of a step.
    eval_step = accuracy.make_eval_step(setup.model, setup.config.seed)
    eval_step.compile(run.state.variables, setup.data.val_batches.allocate_batch())
    program = run.compile_step(setup.find_epoch(first_step))
    train_batches = setup.data.train_batches(steps=range(run.step, length.steps))
    # On leaving, the reader closes first, then the log, then the checkpoints.
    with (
        job.stop_signals() as stop_signal,
        contextlib.closing(run.checkpoints),
        RunLog(setup.workdir, setup.config, length, run.step) as log,
        contextlib.closing(setup.data.read_ahead(train_batches)) as batches,
    ):
        for step, batch in enumerate(log.timed_batches(batches), start=first_step):
            if step > first_step and setup.changes_program(step):
                log.begin_program(step)
                # Only an unreferenced program is unloaded. A run of 75 programs would
                # else have no memory maps left, and end by SIGSEGV.
                program = None
                jax.clear_caches()
                program = run.compile_step(setup.find_epoch(step))

            with log.traced_step(step):
                run.state, metrics = program(run.state, batch, run.teacher_variables)
            run.step = step
            log.take_metrics(step, metrics)  # ends a run that skips too many steps

            is_evaluated = length.evaluates_after(step)
            if is_evaluated:
                run.progress = evaluate_run(run, eval_step, log)
            signum = stop_signal(step)
            if signum or is_evaluated or setup.config.saves_step(step):
                log.flush()  # lines first: a kill between the two loses nothing
                run.save()
            if signum and not run.is_complete:
                raise Stopped(signum, step)
