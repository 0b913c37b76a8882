"""The training of a model: what a run is made of, and its steps from start to end.

The weights of a run come from, in this order: its own newest checkpoint in the workdir;
`config.init.weights`; fresh ones drawn from the seed.
"""

import contextlib
import functools
import pathlib
import time

import jax
import numpy as np

from imagepiece_jax.common import parallel
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.common.progress import working
from imagepiece_jax.data import loader
from imagepiece_jax.errors import InputError, RunError, Stopped
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.models import summary
from imagepiece_jax.reduction import contract
from imagepiece_jax.training import (
    from_config,
    host_consistency,
    initial_weights,
    logging,
    run_dir,
    teacher,
)
from imagepiece_jax.training.checkpoint import Checkpoints
from imagepiece_jax.training.config import BEST_BY
from imagepiece_jax.training.logging import MEASURED, RunLog, say
from imagepiece_jax.training.preemption import PATIENCE, Interrupted, StopRequest
from imagepiece_jax.training.sample_images import SampleImages
from imagepiece_jax.training.train_step import init_state


def train_and_evaluate(config, workdir, dry_run: bool = False) -> dict | None:
    """Train as `config` says in `workdir`; return the results of the last evaluation.

    A workdir with checkpoints of the same config is resumed, a finished run only
    reported. `dry_run` prints plan, cost and memory, and writes nothing. InputError for
    a config or file that does not fit, RunError where training cannot continue.
    """
    workdir = pathlib.Path(workdir)
    with contextlib.ExitStack() as stack:
        with host_consistency.shared_errors():
            from_config.check(config)
            notes = initial_weights.settle_normalization(config, workdir)
            trainer = stack.enter_context(contextlib.closing(Trainer(config, workdir)))
            for line in notes:
                say(f"note: {line}")
            trainer.open_data()
            say(summary.describe(trainer.model, [trainer.dense], config.image_size))
            host_consistency.check_same({"--dry_run": dry_run} | trainer.identity())
            state, meta, restored = trainer.start(write=not dry_run)
        if dry_run:
            say(logging.data_text(config, trainer.train_source, trainer.val_source))
            trainer.check_reductions(state)
            say(trainer.memory_text(state))
            return None
        steps = trainer.length.steps
        if restored == steps == meta["evaluated"]:
            say(f"this run is complete: {restored} steps; nothing is left to do")
        else:
            if restored is not None:
                say(f"resuming from step {restored} of {steps}")
            state, meta = trainer.train(state, meta, restored)
        if parallel.is_main():
            models = trainer.model, trainer.dense
            say(logging.final_table(workdir, config, *models, meta))
        return meta["last"]


class Trainer:
    """One run; its parts are made in the order in which mistakes should show."""

    def __init__(self, config, workdir):
        self.config, self.workdir = config, workdir
        self.model = from_config.model(config, axis_name=parallel.AXIS)
        self.recipe = from_config.recipe(config)
        self.dense = from_config.dense(config)
        self.place = from_config.placement(config)
        self.train_transform = from_config.train_transform(config)
        self.eval_transform = from_config.eval_transform(config)
        self.checkpoints = Checkpoints(workdir, config.keep_every_steps)
        self.eval_step = accuracy.compiled(self.model, config.seed)
        self.samples = SampleImages(workdir, self.model, self.recipe, config.pictures)
        self._program = None  # (its key, the compiled step)
        self.lock = None

    def close(self):
        """Let others have the workdir."""
        if self.lock is not None:
            self.lock.close()

    def open_data(self):
        """Open both splits; the length of the run follows from them."""
        config = self.config
        self.train_source = from_config.source(config, "train")
        self.val_source = from_config.source(config, "val")
        # A size that does not fit shows here, not in the first step.
        from_config.try_first(
            self.train_source, self.train_transform, rng=np.random.default_rng(0)
        )
        from_config.try_first(self.val_source, self.eval_transform)
        self.length = from_config.length(config, len(self.train_source))
        epoch = self.length.steps_per_epoch
        self.rate, self.optimizer = from_config.rate_and_optimizer(config, epoch)

    def identity(self):
        """What all processes of this run must have in common."""
        config, names = self.config.to_dict(), self.train_source.class_names
        return host_consistency.of_run(config, self.model, names, *self._images())

    def start(self, write=True):
        """(state, meta, restored step or None) that training starts from.

        `write`: take the workdir and record this start. Mistakes are found before, and
        leave no folder behind.
        """
        config, workdir = self.config, self.workdir
        run_dir.check_config(workdir, config.to_dict())
        resumed = host_consistency.decided(self.checkpoints.latest_step) is not None
        names = self.train_source.class_names
        initial_weights.check_classes(config, workdir, names, resumed)
        unnamed = None if resumed else initial_weights.unnamed_classes(config, names)
        if unnamed is not None:
            say(f"note: {unnamed}")
        first_state = functools.partial(
            init_state, optimizer=self.optimizer, with_ema=config.ema_decay > 0
        )
        self.given = None
        if config.init.evaluate and not resumed:
            self.given = initial_weights.as_given(config, self.dense)
        self.teacher_model, self.teacher = teacher.of(config, self.dense)
        if resumed:  # the checkpoint has the values: shapes are enough
            shapes = summary.shapes(self.model, config.image_size)
            state = jax.eval_shape(first_state, shapes)
        else:
            state = jax.jit(first_state)(initial_weights.initial(config, self.model))
        if write:
            if parallel.is_main():
                self.lock = run_dir.RunLock(workdir)
                self.checkpoints.check_room(state, self.length.steps)
                run_dir.record_start(workdir, config.to_dict())
                run_dir.record_classes(workdir, names)
            host_consistency.check_workdir(workdir)
        meta = {"best": {"acc1": -1.0, "step": 0}, "last": None, "evaluated": 0}
        data = {"images": self._images()}
        data["digest"] = host_consistency.decided(self._digests)
        meta |= data
        step = None
        if resumed:
            state, meta, step = self.checkpoints.restore(state)
            meta = data | meta  # a former version kept neither, or no digest
            self._check_data({name: meta[name] for name in data}, data)
        arrays = state, self.teacher, self.given
        host_consistency.check_same(host_consistency.of_start(step, arrays))
        return state, meta, step

    def _images(self):
        return [len(self.train_source), len(self.val_source)]

    def _digests(self):
        with working("making a digest of the data"):  # long for files over a network
            return [self.train_source.digest, self.val_source.digest]

    def _check_data(self, before, now):
        """InputError where the data are not those that the run began with.

        Of both splits: images, their number, and digest.
        """
        if before["images"] != now["images"]:
            (train, test), (train_before, test_before) = now["images"], before["images"]
            raise InputError(
                f"{self.config.data.name} has {train} training and {test} test images "
                f"now, but the run in {self.workdir} was begun with {train_before} and "
                f"{test_before}: allowed are the same, or another --workdir"
            )
        for kind, ours, theirs in zip(
            ("training", "test"), now["digest"], before["digest"], strict=True
        ):
            if ours != theirs:
                raise InputError(
                    f"{self.config.data.name} has other {kind} images or labels now "
                    f"(digest {ours}) than the run in {self.workdir} was begun with "
                    f"({theirs}): allowed are the same, or another --workdir"
                )

    def compiled_step(self, epoch: int):
        """`train_step` of `epoch` for all devices, with its state donated.

        One program for all epochs, unless a keep rate warms up. The newest is kept, and
        the others are unloaded.
        """
        model = from_config.train_model(self.config, epoch, parallel.AXIS)
        key = from_config.program_key(model)
        if self._program is not None:
            if self._program[0] == key:
                return self._program[1]
            self._program = None
            parallel.forget_programs()
        step = from_config.step(
            self.config, model, self.optimizer, self.rate, self.teacher_model
        )
        compiled = parallel.pmap(step, donate_argnums=(0,), program="training step")
        self._program = key, compiled
        return compiled

    def check_reductions(self, state):
        """InputError where a step's decision on two random images breaks the contract.

        In the form of the last epoch's training; see reduction.contract.
        """
        config, count = self.config, 2
        model = from_config.train_model(config, self.length.epochs - 1)
        rng = np.random.default_rng(0)
        images = rng.normal(size=(count, *sides(config.image_size), 3))
        keys = jax.random.split(jax.random.key(config.seed), count)
        keys = {"drop_path": keys, "reducer": keys}

        @jax.jit
        def decide(variables, images):
            outputs, _ = model.apply(
                variables, images, True, keys, mutable=["batch_stats"]
            )
            return outputs.results

        results = decide(state.variables, images.astype(np.float32))
        contract.check_results(model.plan, results)

    def memory_text(self, state):
        """Bytes of the state and of the compiled step, and the run's length."""
        config, length, devices = self.config, self.length, parallel.device_count()

        def stack(tree):
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype), tree
            )

        began = time.perf_counter()
        leading = self.place.positions(config.batch_size).shape[1:]
        batch = stack(from_config.batch_shapes(config, leading))
        frozen = None if self.teacher is None else stack(self.teacher)
        last = self.compiled_step(length.epochs - 1)
        compiled = last.compile(stack(state), batch, frozen)
        seconds = time.perf_counter() - began
        held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        working = compiled.memory_analysis().temp_size_in_bytes
        return (
            f"memory on each of {devices} devices: {held / 1e6:,.0f} MB of weights, "
            f"optimizer and averages, {working / 1e6:,.0f} MB of working space "
            f"({jax.devices()[0].device_kind}; compiled in {seconds:.0f} s)\n"
            f"{length.steps} steps: {length.epochs} epochs of "
            f"{length.steps_per_epoch}; programs to compile: "
            f"{from_config.train_programs(config)}; dry run: nothing was written"
        )

    def train(self, state, meta, restored):
        """Take all remaining steps; returns (final state on the host, last meta)."""
        config, first, length = self.config, restored or 0, self.length
        self._open_feed(first, meta)
        batches = self.feed.batches(self.training)
        with contextlib.ExitStack() as stack:
            request = stack.enter_context(StopRequest(0, parallel.Highest()))
            log = RunLog(
                self.workdir, config, length, restored, self.checkpoints.latest_step
            )
            stack.push(self._finish_saving)
            for part in (log, self.feed):
                stack.enter_context(contextlib.closing(part))

            def rescue():
                self._save(step, state, meta, log)
                self.checkpoints.wait()
                return step

            if self.given is not None:
                self._evaluate_given(log, request)
            state = parallel.replicate(state)
            frozen = parallel.replicate(self.teacher)
            if self._resumes_evaluation(first, meta):
                meta = self._evaluate(state, first, meta, log, request)
            step_fn = None
            for step, batch in enumerate(log.timed(batches), start=first + 1):
                epoch, rest = divmod(step - 1, length.steps_per_epoch)
                if rest == 0 or step == first + 1:
                    before, step_fn = step_fn, self.compiled_step(epoch)
                    if step_fn is not before:
                        log.compiles(step)
                request.rescue_by(None)
                with log.dispatch(step):
                    state, metrics = step_fn(state, batch, frozen)
                # Of several processes one alone cannot save.
                request.rescue_by(rescue if parallel.process_count() == 1 else None)
                request.patience = PATIENCE
                log.record(step, metrics)
                evaluate = self._evaluates_after(step)
                if step == first + 1 or evaluate:
                    log.image("augmented", step, self.samples.augmented(batch, step))
                if evaluate:
                    log.flush()
                    with contextlib.suppress(Interrupted):
                        meta = self._evaluate(state, step, meta, log, request)
                    log.restart_clock()
                complete = step == length.steps == meta["evaluated"]
                stop = not complete and request.asked()
                if stop:
                    request.answered()
                if stop or (self._saves_after(step) and not evaluate):
                    self._save(step, state, meta, log)
                if stop:
                    raise Stopped(stop, step)
            request.answered()
        return parallel.unreplicate(state), meta

    def _open_feed(self, first, meta):
        """Open one set of readers for all batches from step `first` on.

        Training and evaluations alternate in an order that is known beforehand: the
        readers are never restarted and never idle at the end of a turn.
        """
        config, length = self.config, self.length
        self.training = loader.train_sequence(
            self.train_source,
            self.train_transform,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=first,
            stop_step=length.steps,
            placement=self.place,
            repeats=config.data.repeats,
        )
        self.evaluation = loader.eval_sequence(
            self.val_source,
            self.eval_transform,
            batch_size=from_config.eval_batch_size(
                config, self.place, len(self.val_source)
            ),
            placement=self.place,
        )
        evaluated = (self.evaluation, 0, self.evaluation.steps)
        before = (self.given is not None) + self._resumes_evaluation(first, meta)
        turns, done = [evaluated] * before, first
        ends = range(0, length.steps + 1, length.steps_per_epoch)
        for step in ends[first // length.steps_per_epoch + 1 :]:
            if self._evaluates_after(step):
                turns += [(self.training, done - first, step - done), evaluated]
                done = step
        self.feed = loader.DataLoader(turns, config.data.workers, config.data.threads)

    def _resumes_evaluation(self, first, meta):
        """Whether a run resumed after step `first` was stopped in the evaluation."""
        return self._evaluates_after(first) and meta["evaluated"] < first

    def _evaluates_after(self, step):
        epoch, rest = divmod(step, self.length.steps_per_epoch)
        due = rest == 0 and epoch % self.config.eval_every_epochs == 0
        return due or step == self.length.steps

    def _saves_after(self, step):
        every = (self.config.checkpoint_every_steps, self.config.keep_every_steps)
        return any(steps and step % steps == 0 for steps in every)

    def _save(self, step, state, meta, log, best=False):
        """Start saving the replicated `state`; RunError where that cannot work."""
        log.flush()  # lines first: a kill between the two loses nothing
        host = parallel.unreplicate(state)
        self._check_lock()
        with self._vanished_folder_first():
            if best:
                self.checkpoints.save_best(step, host, meta)
            self.checkpoints.save(step, host, meta)

    def _check_lock(self):
        if self.lock is not None:  # only the main process holds the folder
            self.lock.check()

    @contextlib.contextmanager
    def _vanished_folder_first(self):
        """If the run's folder vanishes in here, that is the error reported."""
        try:
            yield
        except RunError:
            self._check_lock()
            raise

    def _finish_saving(self, kind, error, trace):
        """Close the checkpoints; their errors do not hide why the run has ended."""
        try:
            with self._vanished_folder_first():
                self.checkpoints.close()
        except RunError:
            if not isinstance(error, RunError):
                raise

    def _evaluate_given(self, log, request):
        """Accuracy of the dense model with the weights that the run starts from."""
        step = accuracy.compiled(self.dense, self.config.seed)
        given = parallel.replicate(self.given)
        (result,) = self._accuracy(step, [given], request)
        what = "the dense model as given has test accuracy"
        log.evaluation("init", 0, result, what)
        self.given = None

    def _evaluate(self, state, step, meta, log, request):
        """Accuracy on the whole val split; a checkpoint, also as the best if it is.

        After a signal Interrupted, and neither of them.
        """
        models = [state.variables] + ([] if state.ema is None else [state.ema])
        last, *averages = self._accuracy(self.eval_step, models, request)
        for average in averages:
            last |= {f"ema_{name}": average[name] for name in ("acc1", "acc5", "loss")}
        log.evaluation("eval", step, last)
        if parallel.is_main():
            variables = parallel.unreplicate(state.variables)
            images = self.samples.tokens(
                self.val_source, self.eval_transform, variables
            )
            log.image("tokens", step, images)
        # A checkpoint holds what is equal in every run of this config.
        last = {k: v for k, v in last.items() if k not in MEASURED}
        meta = meta | {"last": last, "evaluated": step}
        acc1 = last[BEST_BY[self.config.best_by]]
        best = acc1 > meta["best"]["acc1"]
        if best:
            meta = meta | {"best": {"acc1": acc1, "step": step}}
        self._save(step, state, meta, log, best)
        return meta

    def _accuracy(self, eval_step, models, request):
        """One pass over the val split for all these variables: a result for each."""
        batches = request.until_asked(self.feed.batches(self.evaluation))
        results = accuracy.evaluate_each(eval_step, models, batches)
        return [result.figures for result in results]
