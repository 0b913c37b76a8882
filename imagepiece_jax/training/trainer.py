"""The training of a model: the parts of a run, and its loop.

The weights of a run come from, in this order: its own newest checkpoint in the workdir;
`config.init.weights`; fresh ones drawn from the seed.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib

import jax

from imagepiece_jax.common import extras, parallel
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.data import class_names
from imagepiece_jax.errors import Stopped
from imagepiece_jax.models import cost
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.training import optimizer, report, teacher
from imagepiece_jax.training.cluster import job, run_dir
from imagepiece_jax.training.cluster.checkpoint import Checkpoints, Progress
from imagepiece_jax.training.cluster.preemption import StopRequest
from imagepiece_jax.training.data import Data
from imagepiece_jax.training.evaluation import Evaluation
from imagepiece_jax.training.initial_weights import InitialWeights
from imagepiece_jax.training.logging import RunLog, say
from imagepiece_jax.training.train_step import (
    batch_shapes,
    init_state,
    token_counts,
    train_step,
)


def train_and_evaluate(
    config: RunConfig, workdir: str | os.PathLike, dry_run: bool = False
) -> dict | None:
    """Train as a config says in `workdir`.

    A workdir with checkpoints of the same config is resumed, a finished run only
    reported.

    dry_run: print plan, cost and memory, and write nothing
    Returns the figures of the last evaluation; None for a dry run.
    Raises InputError for a config or file that does not fit, RunError where training
        cannot continue, Stopped after a signal.
    """
    extras.check("training", "cv2", "matplotlib", "simplejpeg", "tensorboardX")
    with contextlib.ExitStack() as stack:
        run = Run(config, workdir, stack, dry_run)
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
                run_dir.record_end(run.workdir)
        if parallel.is_main():
            say(report.final_table(run.workdir, run.config, run.model, run.progress))
        return run.progress.last


class Run:
    """One run and its parts, ready for its next step.

    Mistakes are found before anything is written, and leave no folder behind; an error
    of one process is raised in all.

    config: as it is written
    stack: an ExitStack, which gets the lock of `workdir`
    dry_run: neither write nor lock
    Raises InputError for a config, a file or a workdir that does not fit.
    """

    def __init__(self, config: RunConfig, workdir, stack, dry_run: bool = False):
        workdir = pathlib.Path(workdir)
        self.workdir = workdir
        with parallel.shared_errors():
            if parallel.is_main():
                run_dir.check_folder(workdir)
            initial = InitialWeights(config)
            mean_and_std = initial.normalization(workdir)  # {} where they are known
            model = dataclasses.replace(config.model, **mean_and_std)
            data = dataclasses.replace(config.data, **initial.crop(workdir))
            run = dataclasses.replace(config, model=model, data=data).at_cost()
            self.config = run  # as it is trained
            # As it is evaluated: a ViT with the plan of all its steps.
            self.model = run.create_model(parallel.AXIS)
            dense = run.create_dense()
            placement = parallel.placement(run.grad_accum_steps)
            self.data = Data(run, placement, initial.labels_by_name(workdir))
            length = self.data.length
            names = self.data.train.class_names
            if line := class_names.kept_order(names, run.data.name):
                say(f"note: {line}")
            labeled = [source.labeled for source in self.data.eval_sets.values()]
            if not all(labeled):
                say("note: without labels, tests measure agreement with the teacher")
            # The learning rate by step, and an optax transformation.
            self.rate, self.optimizer = optimizer.create(
                run.optim, length.steps_per_epoch, run.reduction.method.param_groups
            )
            fields = run.to_dict()
            job.check_same_settings(dry_run, fields, self.model, self.data)

            lock = run_dir.RunLock(workdir)
            self.checkpoints = Checkpoints(workdir, run.keep_every_steps, lock)
            run_dir.check_config(workdir, fields)
            if parallel.is_main() and not dry_run:
                stack.enter_context(lock)
            resumed = parallel.from_main(self.checkpoints.latest_step) is not None
            initial.check_classes(workdir, names, resumed)
            optimizer.check_part(run.part, run.init, self.model)
            # A Teacher or None, and its frozen variables.
            self.teacher_model, frozen = teacher.create_teacher(run, dense, initial)
            # Variables of the dense model, if it is evaluated before the first step.
            self.dense_variables = None
            if run.init.evaluate and not resumed:
                self.dense_variables = initial.dense_variables(dense)
            new_state = functools.partial(
                init_state,
                optimizer=self.optimizer,
                with_ema=run.ema_decay > 0,
                part=run.part.train,
            )
            if resumed:  # the checkpoint has the values: shapes are enough
                shapes = variable_shapes(self.model, run.image_size)
                state = jax.eval_shape(new_state, shapes)
            else:
                state = jax.jit(new_state)(initial.variables(self.model))
            if names is None and run.distill.unlabeled:
                names = initial.teacher.source.class_names
            del initial  # which holds the tensors of its files
            say(cost.describe(self.model, [dense], run.image_size))

            if not dry_run:  # nothing has been written so far
                self.data.check_space()
                if parallel.is_main():
                    self.checkpoints.check_room(state, length.steps)
                    run_dir.record_start(workdir, fields)
                    run_dir.record_classes(workdir, names)
                run_dir.check_workdir(workdir)
            digest = parallel.from_main(self.data.digest)
            self.step = 0
            self.progress = Progress(self.data.images, digest)
            if resumed:
                state, saved, self.step = self.checkpoints.restore(state)
                self.progress = self.progress.resumed(saved, self.data.names, workdir)
            started = state, frozen, self.dense_variables
            job.check_same_start(self.step, started)
        self.state, self.teacher = parallel.replicate((state, frozen))  # on all devices

    @property
    def complete(self):
        """Whether nothing is left to do."""
        return self.step == self.data.length.steps == self.progress.evaluated

    def train(self):
        """Take all remaining steps, with their evaluations and checkpoints.

        Raises Stopped after a signal, once the state is saved, and RunError where the
        run cannot continue.
        """
        length = self.data.length
        first = self.step + 1
        training = self.data.training(start_step=self.step, stop_step=length.steps)
        saved = self.checkpoints.latest_step
        with (
            StopRequest(parallel.max_over_processes()) as request,
            self.checkpoints as checkpoints,
            RunLog(self.workdir, self.config, length, self.step, saved) as log,
            contextlib.closing(training.batches(*self.data.readers)) as batches,
        ):

            def save():
                log.flush()  # lines first: a kill between the two loses nothing
                state = parallel.unreplicate(self.state)
                meta = dataclasses.asdict(self.progress)
                if self.progress.best["step"] == self.step:
                    checkpoints.save(self.step, state, meta, "best")
                checkpoints.save(self.step, state, meta)

            def stop_at(signum):
                if signum and not self.complete:
                    raise Stopped(signum, self.step)

            evaluation = Evaluation(self, log, request)
            if self.dense_variables is not None:
                evaluation.log_dense(self.dense_variables)
            if self._lacks_evaluation():
                self.progress = evaluation.after_step()
                save()
            stop_at(request.requested())

            for batch in log.timed(batches):
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

                evaluates = length.due(step)
                if step == first or evaluates:
                    evaluation.show_batch(batch)
                if evaluates:
                    self.progress = evaluation.after_step()
                evaluated = self.progress.evaluated == step

                signum = request.requested()
                if signum or evaluated or self.config.saves(step):
                    save()
                stop_at(signum)
            request.ignore_signals()

    def compiled_step(self, epoch: int):
        """The training step of an epoch, compiled for all devices.

        It is a function (state, batch, teacher's variables) -> (state, metrics), which
        overwrites the state that it gets.
        """
        model = self.config.create_train_model(epoch, parallel.AXIS)
        step = functools.partial(
            train_step,
            run=self.config,
            model=model,
            optimizer=self.optimizer,
            rate=self.rate,
            teacher_model=self.teacher_model,
        )
        program = parallel.pmap(step, donate_argnums=(0,), program="training step")
        devices = parallel.device_count()
        micro_batches = self.config.grad_accum_steps
        images = self.config.optim.batch_size // (devices * micro_batches)
        batch = batch_shapes(self.config, (devices, micro_batches, images))
        program.compile(self.state, batch, self.teacher)
        return program

    def _epoch(self, step):
        """The epoch, from 0, of `step`, from 1."""
        return (step - 1) // self.data.length.steps_per_epoch

    def _changes_program(self, step):
        """Whether `step` needs another program than the step before it.

        That is so at the start of an epoch that has another keep rate.
        """
        epochs = self._epoch(step - 1), self._epoch(step)
        if epochs[0] == epochs[1]:
            return False
        before, now = map(self.config.create_train_model, epochs)
        return token_counts(before) != token_counts(now)

    def _lacks_evaluation(self):
        """Whether the run was stopped in the evaluation after its last step."""
        due = self.step > 0 and self.data.length.due(self.step)
        return bool(due) and self.progress.evaluated < self.step
