"""How does a run go? Start or resume, train, evaluate, keep, and say what came out.

Where a run's weights come from, in this order: its own newest checkpoint in the
workdir; `config.init.weights`; fresh ones drawn from the seed.
"""

import contextlib
import functools
import importlib.metadata
import math
import pathlib
import platform
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from imagepiece_jax.data import loader
from imagepiece_jax.errors import RunError, Stopped
from imagepiece_jax.models import summary
from imagepiece_jax.training import evaluation, parallel, report, setup, weights
from imagepiece_jax.training.checkpoint import Checkpoints
from imagepiece_jax.training.metrics import MetricWriter
from imagepiece_jax.training.record import hold, record_run
from imagepiece_jax.training.steps import Recipe, init_state, train_step
from imagepiece_jax.training.stopping import StopRequest

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def train_and_evaluate(config, workdir, dry_run=False):
    """Train as `config` says in `workdir`; returns the last evaluation's numbers.

    A workdir with checkpoints of the same config is gone on with, a finished one only
    reported. `dry_run` prints plan, cost and memory, and writes nothing. InputError for
    a config or file that does not fit, RunError where training cannot go on.
    """
    workdir = pathlib.Path(workdir)
    setup.check(config)
    with contextlib.closing(_Run(config, workdir)) as run:
        dense = [run.dense]
        print(summary.describe(run.model, dense, config.image_size), flush=True)
        run.open_data()
        state, meta, restored = run.start(write=not dry_run)
        if dry_run:
            print(run.memory_text(state))
            return None
        if restored == run.length.steps:
            print(f"this run is complete: {restored} steps; nothing is left to do")
        else:
            if restored is not None:
                print(f"going on from step {restored} of {run.length.steps}")
            state, meta = run.train(state, meta, restored)
        if parallel.is_main():
            run.show(state)
            print(run.final_text(meta))
        return meta["last"]


class _Run:
    """The parts of one run; made once, in the order in which mistakes should show."""

    def __init__(self, config, workdir):
        self.config = config
        self.workdir = workdir
        self.model = setup.model(config, axis_name=parallel.AXIS)
        self.dense = setup.dense(config)
        self.place = setup.placement(config)
        self.train_transform = setup.train_transform(config)
        self.eval_transform = setup.eval_transform(config)
        self.checkpoints = Checkpoints(workdir)
        self.eval_step = evaluation.compiled(self.model, config.seed)
        self.method = setup.method(config)
        self.programs = {}
        self.lock = None

    def close(self):
        """Let others have the workdir."""
        if self.lock is not None:
            self.lock.close()

    def open_data(self):
        """Open both splits; the length of the run follows."""
        self.train_source = setup.source(self.config, "train")
        self.val_source = setup.source(self.config, "val")
        # A size that does not fit shows here, not in the first step.
        setup.try_first(
            self.train_source, self.train_transform, rng=np.random.default_rng(0)
        )
        setup.try_first(self.val_source, self.eval_transform)
        self.length = setup.length(self.config, len(self.train_source))
        self.rate = setup.schedule(self.config, self.length.steps_per_epoch)
        self.optimizer = setup.adamw(
            self.config, self.rate, self.length.steps_per_epoch
        )

    def start(self, write=True):
        """(state, meta, restored step or None) that training starts from."""
        record = functools.partial(
            record_run,
            self.workdir,
            self.config.to_dict(),
            setup.MAY_CHANGE,
            _versions(),
        )
        record(is_main=False)  # only compares: a mistake leaves no folder behind
        resumed = self.checkpoints.latest_step() is not None
        first_state = functools.partial(
            init_state, optimizer=self.optimizer, with_ema=self.config.ema_decay > 0
        )
        if resumed:  # the checkpoint has the values: shapes will do
            shapes = summary.shapes(self.model, self.config.image_size)
            state = jax.eval_shape(first_state, shapes)
        else:
            state = first_state(weights.initial(self.config, self.model))
        self.teacher_model = self.teacher = None
        if self.method.needs_teacher:
            self.teacher_model = self.dense.clone(drop_path_rate=0.0)
            self.teacher = weights.teacher(self.config, self.teacher_model)
        if write and parallel.is_main():
            self.lock = hold(self.workdir)
        if write:
            record(is_main=parallel.is_main())
        if resumed:
            return self.checkpoints.restore(state)
        return state, {"best": {"acc1": -1.0, "step": 0}, "last": None}, None

    def compiled_step(self, epoch):
        """`train_step` for all devices as of `epoch`, with its state donated.

        One program for all: only a keep rate that warms up has several.
        """
        model = setup.train_model(self.config, epoch, parallel.AXIS)
        key = setup.program_key(model)
        if key in self.programs:
            return self.programs[key]
        fields = ("seed", "num_classes", "label_smoothing", "mixup", "cutmix")
        fields += ("mixup_prob", "mixup_switch_prob", "ema_decay", "log_every_steps")
        step = functools.partial(
            train_step,
            model=model,
            optimizer=self.optimizer,
            rate=self.rate,
            recipe=Recipe(**{name: self.config[name] for name in fields}),
            loss_terms=setup.loss_terms(self.config, model.plan),
            teacher_model=self.teacher_model,
        )
        compiled = parallel.pmap(step, donate_argnums=(0,))
        self.programs[key] = compiled
        return compiled

    def train(self, state, meta, restored):
        """All steps that are left: (last state on the host, last meta)."""
        config, first = self.config, restored or 0
        writer = MetricWriter(self.workdir, restored, parallel.is_main())
        bar = tqdm(
            total=self.length.steps,
            initial=first,
            # None: shown where somebody watches, not in a file.
            disable=None if config.progress and parallel.is_main() else True,
            unit="step",
            dynamic_ncols=True,
        )
        batches = loader.train_batches(
            self.train_source,
            self.train_transform,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=first,
            stop_step=self.length.steps,
            placement=self.place,
            workers=config.data.workers,
        )
        log = _Log(self, writer, bar)
        state, teacher = parallel.replicate(state), parallel.replicate(self.teacher)
        with contextlib.ExitStack() as stack:
            for part in (self.checkpoints, writer, bar, batches):
                stack.enter_context(contextlib.closing(part))
            request = stack.enter_context(StopRequest())
            for step, batch in enumerate(batches, start=first + 1):
                epoch, rest = divmod(step - 1, self.length.steps_per_epoch)
                if rest == 0 or step == first + 1:
                    step_fn = self.compiled_step(epoch)
                state, metrics = step_fn(state, batch, teacher)
                log.later(step, metrics)
                epoch, rest = divmod(step, self.length.steps_per_epoch)
                last = step == self.length.steps
                if last or (rest == 0 and epoch % config.eval_every_epochs == 0):
                    log.now()
                    meta = self._evaluate(state, step, meta, writer)
                    log.restart_clock()
                elif step % config.checkpoint_every_steps == 0:
                    log.now()
                    self.checkpoints.save(step, parallel.unreplicate(state), meta)
                if request.signum and not last:
                    log.now()
                    self.checkpoints.save(step, parallel.unreplicate(state), meta)
                    raise Stopped(request.signum, step)
        return parallel.unreplicate(state), meta

    def _evaluate(self, state, step, meta, writer):
        """Accuracy on the whole val split; a checkpoint, and the best one if it is."""
        last = self._accuracy(state.variables)
        if state.ema is not None:
            average = self._accuracy(state.ema)
            last |= {f"ema_{name}": average[name] for name in ("acc1", "acc5", "loss")}
        epoch = step / self.length.steps_per_epoch
        writer.write("eval", step, epoch=epoch, **last)
        if parallel.is_main():
            text = f"epoch {epoch:g}, step {step}: test accuracy {last['acc1']:.2f} %"
            tqdm.write(f"{text}, loss {last['loss']:.3f}")
        host = parallel.unreplicate(state)
        # Rates differ from run to run; a checkpoint holds what does not.
        last = {k: v for k, v in last.items() if k != "throughput"}
        meta = meta | {"last": last}
        if last["acc1"] > meta["best"]["acc1"]:
            meta = meta | {"best": {"acc1": last["acc1"], "step": step}}
            self.checkpoints.save_best(step, host, meta)
        self.checkpoints.save(step, host, meta)
        return meta

    def _accuracy(self, variables):
        batches = loader.eval_batches(
            self.val_source,
            self.eval_transform,
            batch_size=setup.eval_batch_size(self.config, self.place),
            placement=self.place,
            workers=self.config.data.workers,
        )
        return evaluation.evaluate(self.eval_step, variables, batches)

    def show(self, state):
        """The picture of what the tokens of some test images became."""
        count = min(self.config.pictures, len(self.val_source))
        if count == 0:
            return
        # Spread over the split, which is often sorted by class.
        chosen = [i * len(self.val_source) // count for i in range(count)]
        examples = [self.val_source.read(i) for i in chosen]
        images = np.stack([self.eval_transform(image) for image, _ in examples])
        titles = [f"label {label}" for _, label in examples]
        model = self.model.clone(axis_name=None)
        report.save_token_picture(self.workdir, model, state.variables, images, titles)

    def final_text(self, meta):
        return report.final_table(
            self.workdir, self.model, self.dense, self.config.image_size, meta
        )

    def memory_text(self, state):
        """Bytes of the state and of the compiled step, without running it."""
        size = self.config.image_size
        shape = self.place.positions(self.config.batch_size).shape
        batch = {
            "image": jax.ShapeDtypeStruct((*shape, size, size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct(shape, jnp.int32),
        }
        devices = len(parallel.local_devices())

        def stack(tree):
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype), tree
            )

        began = time.perf_counter()
        teacher = None if self.teacher is None else stack(self.teacher)
        last = self.compiled_step(self.length.epochs - 1)
        compiled = last.lower(stack(state), batch, teacher).compile()
        seconds = time.perf_counter() - began
        held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        working = compiled.memory_analysis().temp_size_in_bytes
        return (
            f"memory on each of {devices} devices: {held / 1e6:,.0f} MB of weights, "
            f"optimiser and averages, {working / 1e6:,.0f} MB of working space "
            f"({jax.devices()[0].device_kind}; compiled in {seconds:.0f} s)\n"
            f"{self.length.steps} steps: {self.length.epochs} epochs of "
            f"{self.length.steps_per_epoch}; programs to compile: "
            f"{setup.train_programs(self.config)}; dry run: nothing was written"
        )


class _Log:
    """Metrics of a step, fetched while the next one runs, to bar, file and check."""

    def __init__(self, run, writer, bar):
        self._run, self._writer, self._bar = run, writer, bar
        self._waiting = None
        self.restart_clock()

    def restart_clock(self):
        """Count img/s from here on: evaluation and checkpoints are not training."""
        self._began, self._images = time.perf_counter(), 0

    def later(self, step, metrics):
        """Take step's metrics; those of the step before are dealt with now."""
        self.now()
        self._waiting = step, metrics

    def now(self):
        """Deal with what was taken last. RunError where it is not finite."""
        if self._waiting is None:
            return
        (step, metrics), self._waiting = self._waiting, None
        metrics = parallel.unreplicate(metrics)
        config = self._run.config
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics[name]):
                self._stop(step, name, metrics[name])
        self._images += config.batch_size
        rate = self._images / (time.perf_counter() - self._began)
        window = metrics["window"]
        mean = {k: window[k] / window["samples"] for k in ("loss", "acc1", "acc5")}
        self._bar.set_postfix_str(
            f"loss {mean['loss']:.3f} acc {100 * mean['acc1']:.1f}% {rate:,.0f} img/s",
            refresh=False,
        )
        self._bar.update(1)
        if step % config.log_every_steps == 0 or step == self._run.length.steps:
            self._writer.write(
                "train",
                step,
                epoch=step / self._run.length.steps_per_epoch,
                loss=mean["loss"],
                acc1=100 * mean["acc1"],
                acc5=100 * mean["acc5"],
                lr=metrics["lr"],
                grad_norm=metrics["grad_norm"],
                throughput=rate,
                **metrics["terms"],
            )
            self.restart_clock()

    def _stop(self, step, name, value):
        kept = self._run.checkpoints.latest_step()
        where = f"the checkpoint of step {kept} is kept" if kept else "none was saved"
        raise RunError(
            f"{name} is {value} at step {step}: training stopped, {where} in "
            f"{self._run.workdir}; try a lower config.lr or config.clip_grad_norm=1.0"
        )


def _versions():
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "devices": [str(d.device_kind) for d in parallel.local_devices()],
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
