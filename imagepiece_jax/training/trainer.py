"""The training of a model: a run is opened, and trained step by step.

The weights of a run come from, in this order: its own newest checkpoint in the workdir;
`config.init.weights`; fresh ones drawn from the seed.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from imagepiece_jax.common import parallel
from imagepiece_jax.common.progress import working
from imagepiece_jax.data import loader
from imagepiece_jax.errors import InputError, Stopped
from imagepiece_jax.models import summary
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.training import (
    distributed,
    optimizer,
    report,
    run_dir,
    teacher,
)
from imagepiece_jax.training.checkpoint import Checkpoints
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.evaluation import Evaluation
from imagepiece_jax.training.initial_weights import InitialWeights
from imagepiece_jax.training.logging import MEASURED, RunLog, say
from imagepiece_jax.training.preemption import StopRequest
from imagepiece_jax.training.train_step import (
    TrainState,
    create_step,
    init_state,
    token_counts,
)


def train_and_evaluate(config, workdir, dry_run: bool = False) -> dict | None:
    """Train as `config` says in `workdir`; return the results of the last evaluation.

    A workdir with checkpoints of the same config is resumed, a finished run only
    reported. `dry_run` prints plan, cost and memory, and writes nothing. InputError for
    a config or file that does not fit, RunError where training cannot continue.
    """
    with Run.open(config, workdir, dry_run) as run:
        steps = run.data.length.steps
        if dry_run:
            say(report.dry_run(run))
            return None
        if run.complete:
            say(f"this run is complete: {steps} steps; nothing is left to do")
        else:
            if run.step > 0:
                say(f"resuming from step {run.step} of {steps}")
            run.train()
        if parallel.is_main():
            parts = run.config, run.model, run.progress
            say(report.final_table(run.workdir, *parts))
        return run.progress.last


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a checkpoint holds beside the state's arrays, as JSON values.

    images: in the training and the test split; digest: of their content, likewise;
    best: step and accuracy of the best evaluation; last: figures of the last one, and
    evaluated: its step.
    """

    images: list[int]
    digest: list[str]
    best: dict = dataclasses.field(default_factory=lambda: {"acc1": -1.0, "step": 0})
    last: dict | None = None
    evaluated: int = 0

    def with_evaluation(self, step: int, figures: dict, best_by: str) -> "Progress":
        """With the figures of an evaluation, of which `best_by` chooses the best."""
        best = self.best
        if figures[best_by] > best["acc1"]:
            best = {"acc1": figures[best_by], "step": step}
        # A checkpoint holds what is equal in every run of this config.
        last = {k: v for k, v in figures.items() if k not in MEASURED}
        return dataclasses.replace(self, best=best, last=last, evaluated=step)

    def resumed(self, saved: dict, name: str, workdir) -> "Progress":
        """The progress that a checkpoint has, over the same data as this new one.

        saved: fields; a former version kept no numbers of images, or no digest
        name: `config.data.name`
        Raises InputError where the run in `workdir` was begun with other data.
        """
        before = Progress(**(dataclasses.asdict(self) | saved))
        if before.images != self.images:
            (train, test), (train_before, test_before) = self.images, before.images
            raise InputError(
                f"{name} has {train} training and {test} test images now, but the run "
                f"in {workdir} was begun with {train_before} and {test_before}: "
                "allowed are the same, or another --workdir"
            )
        splits = zip(("training", "test"), self.digest, before.digest, strict=True)
        for split, ours, theirs in splits:
            if ours != theirs:
                raise InputError(
                    f"{name} has other {split} images or labels now (digest {ours}) "
                    f"than the run in {workdir} was begun with ({theirs}): allowed are "
                    "the same, or another --workdir"
                )
        return before


class Data:
    """Both splits of a run: images, and this process's share of their batches.

    length: of a run over them.
    """

    def __init__(self, run: RunConfig):
        placement = parallel.placement(run.grad_accum_steps)
        run.check_training(placement)
        train_transform, eval_transform = run.train_transform(), run.eval_transform()
        self.train, self.val = run.source("train"), run.source("val")
        self.length = run.length(len(self.train))
        # A size that does not fit shows here, not in the first step.
        self.train.try_first(train_transform, rng=np.random.default_rng(0))
        self.val.try_first(eval_transform)
        self.training = functools.partial(
            loader.train_sequence,
            self.train,
            train_transform,
            batch_size=run.optim.batch_size,
            seed=run.seed,
            placement=placement,
            repeats=run.data.repeats,
        )
        self.evaluation = loader.eval_sequence(
            self.val,
            eval_transform,
            batch_size=run.rounded_eval_batch(placement, len(self.val)),
            placement=placement,
        )

    @property
    def images(self) -> list[int]:
        """Numbers of images."""
        return [len(self.train), len(self.val)]

    def progress(self) -> Progress:
        """That of a new run. Every process calls it, and gets process 0's digest.

        The digest takes long for files over a network.
        """

        def digest():
            with working("making a digest of the data"):
                return [self.train.digest, self.val.digest]

        return Progress(self.images, parallel.from_main(digest))


def _settled(config, workdir, initial: InitialWeights) -> RunConfig:
    """The checked config, with the normalization of the images filled in."""
    RunConfig.read(config).create_method()  # their mistakes before what is read of it
    for line in initial.settle_normalization(workdir):
        say(f"note: {line}")
    return RunConfig.read(config)


def _first_state(
    initial: InitialWeights, run: RunConfig, model, transformation, resumed
):
    """The state of step 0; its shapes where a checkpoint has the values."""
    new_state = functools.partial(
        init_state, optimizer=transformation, with_ema=run.ema_decay > 0
    )
    if resumed:
        return jax.eval_shape(new_state, summary.shapes(model, run.image_size))
    return jax.jit(new_state)(initial.variables(model))


@dataclasses.dataclass(eq=False)
class Run:
    """One run: its parts, made by `open`, and where it stands.

    model: as it is evaluated
    teacher_model, teacher: what evaluates the frozen teacher, and its variables on all
        devices; None where there is none
    dense_variables: of the model without reduction, whose accuracy is reported first;
        None: no report
    rate: the learning rate by step
    state: on all devices, after `step` steps
    """

    config: RunConfig
    workdir: pathlib.Path
    checkpoints: Checkpoints
    data: Data
    model: ViT
    teacher_model: ViT | teacher.Teacher | None
    teacher: Any
    dense_variables: Any
    rate: Callable
    optimizer: optax.GradientTransformation
    state: TrainState
    step: int
    progress: Progress

    @classmethod
    @contextlib.contextmanager
    def open(cls, config, workdir, dry_run: bool = False):
        """The run of `config` in `workdir`, which is locked while this is entered.

        Mistakes are found before anything is written, and leave no folder behind; what
        one process of several finds is raised in all. A dry run neither writes nor
        locks. InputError for a config, a file or a workdir that does not fit.
        """
        workdir = pathlib.Path(workdir)
        with contextlib.ExitStack() as stack:
            with parallel.shared_errors():
                initial = InitialWeights(config)
                run = _settled(config, workdir, initial)
                model, dense = run.create_model(parallel.AXIS), run.create_dense()
                data = Data(run)
                rate, transformation = optimizer.create(
                    run.optim,
                    data.length.steps_per_epoch,
                    run.create_method().param_groups,
                )
                say(summary.describe(model, [dense], run.image_size))
                fields = config.to_dict()
                distributed.check_same_settings(dry_run, fields, model, data)

                lock = run_dir.RunLock(workdir)
                checkpoints = Checkpoints(
                    workdir, run.keep_every_steps, run.checkpoint_every_steps, lock
                )
                run_dir.check_config(workdir, fields)
                resumed = parallel.from_main(checkpoints.latest_step) is not None
                names = data.train.class_names
                if unnamed := initial.check_classes(workdir, names, resumed):
                    say(f"note: {unnamed}")
                teacher_model, frozen = teacher.of(config, dense, initial)
                dense_variables = None
                if run.init.evaluate and not resumed:
                    dense_variables = initial.dense_variables(dense)
                state = _first_state(initial, run, model, transformation, resumed)
                del initial  # which holds the tensors of its files

                if not dry_run:  # nothing has been written so far
                    if parallel.is_main():
                        stack.enter_context(lock)
                        checkpoints.check_room(state, data.length.steps)
                        run_dir.record_start(workdir, fields)
                        run_dir.record_classes(workdir, names)
                    run_dir.check_workdir(workdir)
                step, progress = 0, data.progress()
                if resumed:
                    state, saved, step = checkpoints.restore(state)
                    progress = progress.resumed(saved, run.data.name, workdir)
                distributed.check_same_start(step, (state, frozen, dense_variables))
            # By the same names: the copies on one device or the host are freed.
            state, frozen = parallel.replicate(state), parallel.replicate(frozen)
            yield cls(
                config=run,
                workdir=workdir,
                checkpoints=checkpoints,
                data=data,
                model=model,
                teacher_model=teacher_model,
                teacher=frozen,
                dense_variables=dense_variables,
                rate=rate,
                optimizer=transformation,
                state=state,
                step=step,
                progress=progress,
            )

    @property
    def complete(self):
        """Whether nothing is left to do."""
        return self.step == self.data.length.steps == self.progress.evaluated

    def train(self):
        """Take all remaining steps, with their evaluations and checkpoints.

        After a signal Stopped, once the state is saved; RunError where the run cannot
        continue.
        """
        length, first = self.data.length, self.step + 1
        training = self.data.training(start_step=self.step, stop_step=length.steps)
        saved = self.checkpoints.latest_step
        with (
            StopRequest(parallel.max_over_processes()) as request,
            self.checkpoints as checkpoints,
            contextlib.closing(
                RunLog(self.workdir, self.config, length, self.step, saved)
            ) as log,
            contextlib.closing(self._loader(training)) as reader,
        ):

            def save():
                log.flush()  # lines first: a kill between the two loses nothing
                state = parallel.unreplicate(self.state)
                meta = dataclasses.asdict(self.progress)
                if self.progress.best["step"] == self.step:
                    checkpoints.save_best(self.step, state, meta)
                checkpoints.save(self.step, state, meta)

            def stop_at(signum):
                if signum and not self.complete:
                    raise Stopped(signum, self.step)

            evaluation = Evaluation(self, reader, log, request)
            if self.dense_variables is not None:
                evaluation.log_dense(self.dense_variables)
            if self._lacks_evaluation():
                self.progress = evaluation.after_step()
                save()
            stop_at(request.asked())

            for batch in log.timed(reader.batches(training)):
                step = self.step + 1
                if step == first or self._changes_program(step):
                    if step > first:
                        log.compiles(step)
                        save()  # a signal during the compile ends the process
                        checkpoints.wait()
                        program = None  # unloaded
                        parallel.forget_programs()
                    with request.ending_at_once():
                        program = self.compiled_step(self._epoch(step))

                with log.dispatch(step):
                    self.state, metrics = program(self.state, batch, self.teacher)
                self.step = step
                log.record(step, metrics)

                evaluates = length.is_evaluated(step)
                if step == first or evaluates:
                    evaluation.show_batch(batch)
                if evaluates:
                    self.progress = evaluation.after_step()
                evaluated = self.progress.evaluated == step

                signum = request.asked()
                if signum or evaluated or checkpoints.due(step):
                    save()
                stop_at(signum)
            request.ignore_signals()

    def compiled_step(self, epoch: int):
        """`train_step` of `epoch` for all devices, compiled, with its state donated."""
        model = self.config.create_train_model(epoch, parallel.AXIS)
        step = create_step(
            self.config, model, self.optimizer, self.rate, self.teacher_model
        )
        program = parallel.pmap(step, donate_argnums=(0,), program="training step")
        batch = self.data.training(start_step=0, stop_step=1).empty()
        program.compile(self.state, batch, self.teacher)
        return program

    def _epoch(self, step):
        """The epoch, from 0, of `step`, from 1."""
        return (step - 1) // self.data.length.steps_per_epoch

    def _changes_program(self, step):
        """Whether `step` has another program than the one before: a rate warms up."""
        epochs = self._epoch(step - 1), self._epoch(step)
        if epochs[0] == epochs[1]:
            return False
        before, now = map(self.config.create_train_model, epochs)
        return token_counts(before) != token_counts(now)

    def _lacks_evaluation(self):
        """Whether the run was stopped in the evaluation after its last step."""
        due = self.step > 0 and self.data.length.is_evaluated(self.step)
        return due and self.progress.evaluated < self.step

    def _loader(self, training):
        """One set of readers for the batches of all remaining steps and evaluations.

        These alternate in an order that is known beforehand: readers are never
        restarted, and never idle at the end of a turn.
        """
        config, length = self.config.data, self.data.length
        evaluation = (self.data.evaluation, 0, self.data.evaluation.steps)
        first = (self.dense_variables is not None) + self._lacks_evaluation()
        turns, done = [evaluation] * first, self.step
        epoch = length.steps_per_epoch
        for step in range(epoch, length.steps + 1, epoch):
            if step > self.step and length.is_evaluated(step):
                turns += [(training, done - self.step, step - done), evaluation]
                done = step
        return loader.DataLoader(turns, config.workers, config.threads)
