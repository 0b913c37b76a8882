"""How does a run go? Train, evaluate, keep, stop when asked, and say what came out."""

import contextlib
import pathlib

from imagepiece_jax.common import parallel
from imagepiece_jax.data import loader
from imagepiece_jax.errors import RunError, Stopped
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.models import summary
from imagepiece_jax.training import (
    checks,
    from_config,
    host_consistency,
    initial_weights,
    report,
)
from imagepiece_jax.training.logging import Watch
from imagepiece_jax.training.metrics import MEASURED
from imagepiece_jax.training.preemption import PATIENCE, Interrupted, StopRequest
from imagepiece_jax.training.run import Run


def train_and_evaluate(config, workdir, dry_run=False):
    """Train as `config` says in `workdir`; returns the last evaluation's numbers.

    A workdir with checkpoints of the same config is gone on with, a finished one only
    reported. `dry_run` prints plan, cost and memory, and writes nothing. InputError for
    a config or file that does not fit, RunError where training cannot go on.
    """
    workdir = pathlib.Path(workdir)
    with contextlib.ExitStack() as stack:
        with host_consistency.shared_fate():
            host_consistency.check_same({"--dry_run": dry_run})  # their ways part below
            checks.check(config)
            untold = initial_weights.settle_normalization(config, workdir)
            host_consistency.check_config(config.to_dict())
            run = stack.enter_context(contextlib.closing(_Course(config, workdir)))
            host_consistency.check_model(run.model)
            for line in untold:
                _say(f"note: {line}")
            _say(summary.describe(run.model, [run.dense], config.image_size))
            run.open_data()
            state, meta, restored = run.start(write=not dry_run)
        names = run.train_source.class_names
        unnamed = (
            initial_weights.unnamed_classes(config, names) if restored is None else None
        )
        if unnamed is not None:
            _say(f"note: {unnamed}")
        if dry_run:
            _say(report.data_text(run))
            _say(report.memory_text(run, state))
            return None
        if restored == run.length.steps == meta["evaluated"]:
            _say(f"this run is complete: {restored} steps; nothing is left to do")
        else:
            if restored is not None:
                _say(f"going on from step {restored} of {run.length.steps}")
            state, meta = run.train(state, meta, restored)
        if parallel.is_main():
            _say(report.final_table(workdir, config, run.model, run.dense, meta))
        return meta["last"]


def _say(text):
    """Once, however many processes there are."""
    if parallel.is_main():
        print(text, flush=True)


class _Course(Run):
    """What is done with the parts of a run, step by step."""

    def train(self, state, meta, restored):
        """All steps that are left: (last state on the host, last meta)."""
        config, first, length = self.config, restored or 0, self.length
        self._open_feed(first, meta)
        batches = self.feed.batches(self.training)
        with contextlib.ExitStack() as stack:
            request = stack.enter_context(StopRequest(0, parallel.Highest()))
            watch = Watch(
                self.workdir, config, length, restored, self.checkpoints.latest_step
            )
            stack.push(self._finish_saving)
            for part in (watch, self.feed):
                stack.enter_context(contextlib.closing(part))

            def rescue():
                self._save(step, state, meta, watch)
                self.checkpoints.wait()

            if self.given is not None:
                self._evaluate_given(watch, request)
            state = parallel.replicate(state)
            teacher = parallel.replicate(self.teacher)
            if self._resumes_evaluation(first, meta):
                meta = self._evaluate(state, first, meta, watch, request)
            step_fn = None
            for step, batch in enumerate(watch.waited_for(batches), start=first + 1):
                epoch, rest = divmod(step - 1, length.steps_per_epoch)
                if rest == 0 or step == first + 1:
                    before, step_fn = step_fn, self.compiled_step(epoch)
                    if step_fn is not before:
                        watch.compiles(step)
                request.rescue_by(None)
                with watch.step(step):
                    state, metrics = step_fn(state, batch, teacher)
                # Of several processes one alone cannot save.
                request.rescue_by(rescue if parallel.process_count() == 1 else None)
                request.patience = PATIENCE
                watch.later(step, metrics)
                evaluate = self._evaluates_after(step)
                if step == first + 1 or evaluate:
                    watch.image("augmented", step, self.panels.augmented(batch, step))
                if evaluate:
                    watch.now()
                    with contextlib.suppress(Interrupted):
                        meta = self._evaluate(state, step, meta, watch, request)
                    watch.restart_clock()
                complete = step == length.steps == meta["evaluated"]
                stop = not complete and request.asked()
                if stop:
                    request.answered()
                if stop or (self._saves_after(step) and not evaluate):
                    self._save(step, state, meta, watch)
                if stop:
                    raise Stopped(stop, step)
            request.answered()
        return parallel.unreplicate(state), meta

    def _open_feed(self, first, meta):
        """One set of readers for all batches from step `first` on.

        Training and evaluations take turns, in an order that is known beforehand: the
        readers are never started anew and never wait for a turn to end.
        """
        config, length = self.config, self.length
        self.training = loader.training(
            self.train_source,
            self.train_transform,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=first,
            stop_step=length.steps,
            placement=self.place,
            repeats=config.data.repeats,
        )
        self.evaluation = loader.evaluation(
            self.val_source,
            self.eval_transform,
            batch_size=from_config.eval_batch_size(config, self.place),
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
        self.feed = loader.Feed(turns, config.data.workers, config.data.threads)

    def _resumes_evaluation(self, first, meta):
        """Whether a run that goes on after step `first` was stopped in the middle."""
        return self._evaluates_after(first) and meta["evaluated"] < first

    def _evaluates_after(self, step):
        epoch, rest = divmod(step, self.length.steps_per_epoch)
        due = rest == 0 and epoch % self.config.eval_every_epochs == 0
        return due or step == self.length.steps

    def _saves_after(self, step):
        every = (self.config.checkpoint_every_steps, self.config.keep_every_steps)
        return any(steps and step % steps == 0 for steps in every)

    def _save(self, step, state, meta, watch, best=False):
        """Start saving the replicated `state`; RunError where that cannot work."""
        watch.now()  # lines first: a kill between the two loses nothing
        host = parallel.unreplicate(state)
        self._check_place()
        with self._in_place():
            if best:
                self.checkpoints.save_best(step, host, meta)
            self.checkpoints.save(step, host, meta)

    def _check_place(self):
        if self.lock is not None:  # only the main process holds the folder
            self.lock.check()

    @contextlib.contextmanager
    def _in_place(self):
        """For writing into the run's folder: if that vanishes, it is what is said."""
        try:
            yield
        except RunError:
            self._check_place()
            raise

    def _finish_saving(self, kind, error, trace):
        """Close the checkpoints; what they say does not hide why the run has ended."""
        try:
            with self._in_place():
                self.checkpoints.close()
        except RunError:
            if not isinstance(error, RunError):
                raise

    def _evaluate_given(self, watch, request):
        """Accuracy of the dense model with the weights that the run starts from."""
        step = accuracy.compiled(self.dense, self.config.seed)
        given = parallel.replicate(self.given)
        (result,) = self._accuracy(step, [given], request)
        watch.accuracy("init", 0, result, "the dense model as given has test accuracy")
        self.given = None

    def _evaluate(self, state, step, meta, watch, request):
        """Accuracy on the whole val split; a checkpoint, and the best one if it is.

        After a signal Interrupted, and neither of them.
        """
        models = [state.variables] + ([] if state.ema is None else [state.ema])
        last, *averages = self._accuracy(self.eval_step, models, request)
        for average in averages:
            last |= {f"ema_{name}": average[name] for name in ("acc1", "acc5", "loss")}
        watch.accuracy("eval", step, last)
        if parallel.is_main():
            tokens = self.panels.tokens(
                self.val_source,
                self.eval_transform,
                parallel.unreplicate(state.variables),
            )
            watch.image("tokens", step, tokens)
        # A checkpoint holds what is equal in every run of this config.
        last = {k: v for k, v in last.items() if k not in MEASURED}
        meta = meta | {"last": last, "evaluated": step}
        best = last["acc1"] > meta["best"]["acc1"]
        if best:
            meta = meta | {"best": {"acc1": last["acc1"], "step": step}}
        self._save(step, state, meta, watch, best)
        return meta

    def _accuracy(self, eval_step, models, request):
        """One pass over the val split for all these variables: a result for each."""
        batches = request.until_asked(self.feed.batches(self.evaluation))
        results = accuracy.evaluate_each(eval_step, models, batches)
        return [result.figures for result in results]
