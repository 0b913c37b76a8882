"""The training of a model: a run is opened, and trained step by step.

The weights of a run come from, in this order: its own newest checkpoint in the workdir;
`config.init.weights`; fresh ones drawn from the seed.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import zlib
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from imagepiece_jax.common import parallel
from imagepiece_jax.common.progress import working
from imagepiece_jax.data import loader
from imagepiece_jax.errors import InputError, Stopped
from imagepiece_jax.models import summary
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.training import (
    from_config,
    initial_weights,
    optimizer,
    report,
    run_dir,
    teacher,
)
from imagepiece_jax.training.checkpoint import Checkpoints
from imagepiece_jax.training.config import Length, RunConfig
from imagepiece_jax.training.evaluation import Evaluation
from imagepiece_jax.training.logging import MEASURED, RunLog, say
from imagepiece_jax.training.preemption import StopRequest
from imagepiece_jax.training.train_step import Recipe, TrainState, init_state

# Fields that say how one host reads, and may differ from host to host.
OF_ONE_HOST = ("data.dir", "data.workers", "data.threads")


def train_and_evaluate(config, workdir, dry_run: bool = False) -> dict | None:
    """Train as `config` says in `workdir`; return the results of the last evaluation.

    A workdir with checkpoints of the same config is resumed, a finished run only
    reported. `dry_run` prints plan, cost and memory, and writes nothing. InputError for
    a config or file that does not fit, RunError where training cannot continue.
    """
    with Run.open(config, workdir, dry_run) as run:
        steps = run.length.steps
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
            models = run.model, run.dense
            say(report.final_table(run.workdir, config, *models, run.progress))
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


class Data:
    """Both splits of a run: images, and this process's share of their batches."""

    def __init__(self, run: RunConfig):
        self._name = run.data.name
        placement = parallel.placement(run.grad_accum_steps)
        run.check_batches(placement)
        train_transform, eval_transform = run.train_transform(), run.eval_transform()
        self.train, self.val = run.source("train"), run.source("val")
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

    def digest(self) -> list[str]:
        """Of the content of both splits; long for files over a network."""
        with working("making a digest of the data"):
            return [self.train.digest, self.val.digest]

    def check_same(self, before: Progress, now: Progress, workdir):
        """InputError where the data are not those that the run began with."""
        name = self._name
        if before.images != now.images:
            (train, test), (train_before, test_before) = now.images, before.images
            raise InputError(
                f"{name} has {train} training and {test} test images now, but the run "
                f"in {workdir} was begun with {train_before} and {test_before}: "
                "allowed are the same, or another --workdir"
            )
        splits = zip(("training", "test"), now.digest, before.digest, strict=True)
        for split, ours, theirs in splits:
            if ours != theirs:
                raise InputError(
                    f"{name} has other {split} images or labels now (digest {ours}) "
                    f"than the run in {workdir} was begun with ({theirs}): allowed are "
                    "the same, or another --workdir"
                )


def shared_settings(config: dict, model, data: Data) -> dict:
    """What all processes of a run must have in common, for `parallel.check_same`.

    config: nested dict of JSON values, of which `OF_ONE_HOST` may differ. With "auto"
    the model's attention and kernels depend on the devices.
    """
    fields = traverse_util.flatten_dict(config, sep=".")
    names = json.dumps(data.train.class_names)
    train_images, test_images = data.images
    return {
        **{f"config.{n}": fields[n] for n in fields if n not in OF_ONE_HOST},
        "config.model.attention, resolved for the devices there,": model.backend,
        "config.model.kernels, resolved for the devices there,": (
            "plain" if model.kernels is None else f"fused for {model.kernels}"
        ),
        "the number of training images": train_images,
        "the number of test images": test_images,
        "the checksum of the names of the classes": zlib.crc32(names.encode()),
    }


def shared_start(step: int, arrays) -> dict:
    """The same of the step that they start from, and of a tree of first arrays."""
    checksum = 0
    if parallel.process_count() > 1:
        for leaf in jax.tree.leaves(arrays):
            content = np.ascontiguousarray(leaf).view(np.uint8).data
            checksum = zlib.crc32(content, checksum)
    return {
        "the step to resume from": step,
        "the checksum of the first weights": checksum,
    }


@dataclasses.dataclass(eq=False)
class Run:
    """One run: its parts, made by `open`, and where it stands."""

    config: Any
    workdir: pathlib.Path
    lock: run_dir.RunLock | None  # of the main process
    data: Data
    model: ViT  # as it is evaluated
    dense: ViT  # the same without reduction
    dense_variables: Any  # whose accuracy is reported first; None: no report
    teacher_model: Any  # what evaluates the frozen teacher, and its variables
    teacher: Any  # on all devices
    length: Length
    rate: Any  # learning rate by step
    optimizer: Any
    state: TrainState  # on all devices, after `step` steps
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
                # What the config asks for.
                settings = RunConfig.read(config)
                method = from_config.method(config)
                for line in initial_weights.settle_normalization(config, workdir):
                    say(f"note: {line}")
                model = from_config.model(config, axis_name=parallel.AXIS)
                dense = from_config.dense(config)
                Recipe.of(settings, model)  # for its own mistakes
                data = Data(settings)
                length = settings.length(len(data.train))
                rate, transformation = optimizer.create(
                    settings.optim, length.steps_per_epoch, method.param_groups
                )
                say(summary.describe(model, [dense], config.image_size))
                names, fields = data.train.class_names, config.to_dict()
                common = shared_settings(fields, model, data)
                parallel.check_same({"--dry_run": dry_run, **common})

                # What the workdir holds, and the state to start from.
                run_dir.check_config(workdir, fields)
                checkpoints = Checkpoints(workdir, config.keep_every_steps)
                newest = parallel.from_main(checkpoints.latest_step)
                resumed = newest is not None
                initial_weights.check_classes(config, workdir, names, resumed)
                if not resumed:
                    unnamed = initial_weights.unnamed_classes(config, names)
                    if unnamed is not None:
                        say(f"note: {unnamed}")
                teacher_model, teacher_variables = teacher.of(config, dense)
                new_state = functools.partial(
                    init_state, optimizer=transformation, with_ema=config.ema_decay > 0
                )
                dense_variables = None
                if not resumed:
                    if config.init.evaluate:
                        dense_variables = initial_weights.as_given(config, dense)
                    state = jax.jit(new_state)(initial_weights.initial(config, model))
                else:  # the checkpoint has the values: shapes are enough
                    shapes = summary.shapes(model, config.image_size)
                    state = jax.eval_shape(new_state, shapes)

                # Nothing has been written so far.
                lock = None
                if not dry_run:
                    if parallel.is_main():
                        lock = stack.enter_context(run_dir.RunLock(workdir))
                        checkpoints.check_room(state, length.steps)
                        run_dir.record_start(workdir, fields)
                        run_dir.record_classes(workdir, names)
                    run_dir.check_workdir(workdir)
                step = 0
                progress = Progress(data.images, parallel.from_main(data.digest))
                if resumed:
                    state, meta, step = checkpoints.restore(state)
                    # A former version kept no numbers of images, or no digest.
                    before = Progress(**(dataclasses.asdict(progress) | meta))
                    data.check_same(before, progress, workdir)
                    progress = before
                common = shared_start(step, (state, teacher_variables, dense_variables))
                parallel.check_same(common)
            # By the same names: the copies on one device or the host are freed.
            state = parallel.replicate(state)
            teacher_variables = parallel.replicate(teacher_variables)
            yield cls(
                config=config,
                workdir=workdir,
                lock=lock,
                data=data,
                model=model,
                dense=dense,
                dense_variables=dense_variables,
                teacher_model=teacher_model,
                teacher=teacher_variables,
                length=length,
                rate=rate,
                optimizer=transformation,
                state=state,
                step=step,
                progress=progress,
            )

    @property
    def complete(self):
        """Whether nothing is left to do."""
        return self.step == self.length.steps == self.progress.evaluated

    def train(self):
        """Take all remaining steps, with their evaluations and checkpoints.

        After a signal Stopped, once the state is saved; RunError where the run cannot
        continue.
        """
        config, first = self.config, self.step + 1
        training = self.data.training(start_step=self.step, stop_step=self.length.steps)
        with (
            StopRequest(parallel.max_over_processes()) as request,
            Checkpoints(
                self.workdir,
                keep_every=config.keep_every_steps,
                save_every=config.checkpoint_every_steps,
                lock=self.lock,
            ) as checkpoints,
            contextlib.closing(
                RunLog(
                    self.workdir,
                    config,
                    self.length,
                    self.step,
                    checkpoints.latest_step,
                )
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

            with request.ending_at_once():
                evaluation = Evaluation(self, reader, log, request)
                if self.dense_variables is not None:
                    evaluation.log_dense(self.dense_variables)
                if self._lacks_evaluation():
                    self.progress = evaluation.after_step()
                    save()

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

                evaluates = self.length.is_evaluated(step)
                if step == first or evaluates:
                    evaluation.show_batch(batch)
                if evaluates:
                    self.progress = evaluation.after_step()
                evaluated = self.progress.evaluated == step

                signum = request.asked()
                if signum or evaluated or checkpoints.due(step):
                    save()
                if signum and not self.complete:
                    raise Stopped(signum, step)
            request.ignore_signals()

    def compiled_step(self, epoch: int):
        """`train_step` of `epoch` for all devices, compiled, with its state donated."""
        model = from_config.train_model(self.config, epoch, parallel.AXIS)
        step = from_config.step(
            self.config, model, self.optimizer, self.rate, self.teacher_model
        )
        program = parallel.pmap(step, donate_argnums=(0,), program="training step")
        batch = self.data.training(start_step=0, stop_step=1).empty()
        program.compile(self.state, batch, self.teacher)
        return program

    def _epoch(self, step):
        """The epoch, from 0, of `step`, from 1."""
        return (step - 1) // self.length.steps_per_epoch

    def _changes_program(self, step):
        """Whether `step` has another program than the one before: a rate warms up."""
        epochs = self._epoch(step - 1), self._epoch(step)
        if epochs[0] == epochs[1]:
            return False
        models = (from_config.train_model(self.config, epoch) for epoch in epochs)
        return len(set(map(from_config.program_key, models))) > 1

    def _lacks_evaluation(self):
        """Whether the run was stopped in the evaluation after its last step."""
        due = self.step > 0 and self.length.is_evaluated(self.step)
        return due and self.progress.evaluated < self.step

    def _loader(self, training):
        """One set of readers for the batches of all remaining steps and evaluations.

        These alternate in an order that is known beforehand: readers are never
        restarted, and never idle at the end of a turn.
        """
        config, epoch = self.config, self.length.steps_per_epoch
        evaluation = (self.data.evaluation, 0, self.data.evaluation.steps)
        first = (self.dense_variables is not None) + self._lacks_evaluation()
        turns, done = [evaluation] * first, self.step
        for step in range(epoch, self.length.steps + 1, epoch):
            if step > self.step and self.length.is_evaluated(step):
                turns += [(training, done - self.step, step - done), evaluation]
                done = step
        return loader.DataLoader(turns, config.data.workers, config.data.threads)
