"""One run from scratch: resident images, one evaluation at the end.

The step is the trainer's own. A program does not depend on the seed or the length of a
run, so each system is compiled once for all of its seeds.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np

from experiments.scratch import resident, systems
from imagepiece_jax.benchmark import device
from imagepiece_jax.common import parallel
from imagepiece_jax.data import loader, sources, transforms
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.models import summary
from imagepiece_jax.reduction import settings
from imagepiece_jax.training.checkpoint import Checkpoints
from imagepiece_jax.training.train_step import init_state

EVAL_BATCH = 500
THREADS = 8  # that decode
AHEAD = 5  # calls that are queued while time is taken
SAVE_EVERY = 60.0  # seconds, at the end of an epoch


class Data:
    """Both splits of a source, read once; training images are on the device."""

    def __init__(self, name: str, options: systems.Options):
        train, val = (sources.open_source(name, split) for split in sources.SPLITS)
        self.num_classes = train.num_classes
        whole = transforms.EvalTransform(
            options.image_size, crop=1.0, crop_mode="squash"
        )
        test = resident.read(val, whole, THREADS)
        images = resident.read(
            train, transforms.CanvasTransform(options.canvas), THREADS
        )
        self.train_images, self.test_images = len(images), len(test)
        self.digest = [train.digest, val.digest]
        self.placement = parallel.placement()
        self.placement.positions(options.train_batch_size)  # its own mistakes
        self.steps = loader.steps_per_epoch(len(images), options.train_batch_size)
        self.batch_size = options.train_batch_size
        # A GPU takes an epoch at once: to call a step may take longer than the step.
        self.together = 1 if device.platform() == "cpu" else self.steps
        self.on_device = parallel.replicate(images.fields)
        self.test = resident.as_source(test, val)
        self.ready = transforms.EvalTransform(options.image_size, resize="none")

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Indices of its images, int32 [calls, devices, steps of a call, 1, m]."""
        order = loader.epoch_order(seed, epoch, self.train_images)
        order = order[: self.steps * self.batch_size].astype(np.int32)
        positions = self.placement.positions(self.batch_size)
        index = order.reshape(-1, self.together, self.batch_size)[:, :, positions]
        return index.swapaxes(1, 2)

    def test_batches(self):
        """The test images in order, each once."""
        devices = self.placement.local_devices
        size = -(-min(EVAL_BATCH, self.test_images) // devices) * devices
        return loader.eval_batches(
            self.test, self.ready, batch_size=size, placement=self.placement
        )


class Trainee:
    """A system's models and programs, for runs of any seed and length."""

    def __init__(self, system, options, num_classes, dtype):
        self.system, self.options = system, options
        create = functools.partial(systems.create, system, options, num_classes, dtype)
        self._create = create
        self.model = create()
        trained = create(
            masked=True,
            axis_name=parallel.AXIS,
            reduction={"name": system.reduction["name"]} | _fields(system),
        )
        self.teacher_model = create(settings.DENSE) if system.start else None
        self.steps = parallel.pmap(
            systems.steps(system, options, num_classes, trained, self.teacher_model),
            donate_argnums=(0,),
            program="training steps",
        )
        self.scorer = self.make_scorer()
        self._first = jax.jit(self._drawn)

    def _drawn(self, seed):
        _, adam = systems.adamw(self.system, self.options, 1)
        variables = summary.fresh(self.model, self.options.image_size, seed)
        return init_state(variables, adam, with_ema=False)

    def make_scorer(self, model=None, **options):
        """A program (variables, batch, seed) of `accuracy.eval_step` with `options`.

        model: another one than is trained, of the same parameters.
        """

        def scored(variables, batch, seed):
            return accuracy.eval_step(
                variables, batch, model=model or self.model, seed=seed, **options
            )

        return parallel.pmap(scored, program="evaluation")

    def with_fields(self, **fields):
        """The model with other fields of its reduction."""
        reduction = self.system.reduction | fields
        return self._create(reduction=reduction)

    @property
    def facts(self) -> dict:
        """What the plan decides."""
        return {
            "gmacs": summary.model_macs(self.model, self.options.image_size) / 1e9,
            "tokens": self.model.plan[-1].mlp_tokens,
        }

    def initial(self, seed: int, start: dict | None = None):
        """State of step 0: fresh, but for what `start`, variables of the dense, has."""
        state = self._first(np.uint32(seed))
        if start is None:
            return state
        given = {name: {**getattr(state, name), **start[name]} for name in start}
        return state.replace(**given)

    def evaluate(self, variables, seed: int, data: Data, scorer=None, prepare=None):
        """EvalResult of replicated `variables` on the test images.

        scorer: from `make_scorer`; prepare(batch): the batch with what that reads.
        """
        seed, scorer = parallel.replicate(np.uint32(seed)), scorer or self.scorer

        def step(variables, batch):
            return scorer(variables, batch, seed)

        batches = data.test_batches()
        batches = map(prepare, batches) if prepare else batches
        return accuracy.evaluate(step, variables, batches)


def _fields(system):
    """All fields of a system's method, those of training included."""
    method = system.method
    return {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}


@dataclasses.dataclass
class Run:
    """A run of `trainee` with `seed` over `epochs`; its checkpoints are in `folder`.

    start: variables that it starts and learns from; told(epoch, loss, seconds): called
    after each epoch.
    """

    trainee: Trainee
    data: Data
    seed: int
    epochs: int
    folder: pathlib.Path | None = None
    start: dict | None = None
    told: Callable[[int, float, float], None] = lambda *_: None

    def train(self):
        """(replicated state, meta): `losses` and `seconds`, both by epoch.

        Resumes from the newest checkpoint, to the same bits.
        """
        state, meta = self._begin()
        step, saved = self._step(), time.monotonic()
        for epoch in range(len(meta["losses"]), self.epochs):
            began, losses = time.monotonic(), []
            for index in self.data.epoch(self.seed, epoch):
                state, loss = step(state, index)
                losses.append(loss)
            loss = float(np.mean([parallel.unreplicate(x) for x in losses]))
            if not np.isfinite(loss):
                raise InputError(
                    f"the loss of {self.trainee.system.name} is {loss} in epoch "
                    f"{epoch + 1}; allowed is a lower --peak_lr"
                )
            seconds = time.monotonic() - began
            meta["losses"].append(loss)
            meta["seconds"].append(round(seconds, 3))
            due = time.monotonic() - saved > SAVE_EVERY or epoch + 1 == self.epochs
            if due and self.folder is not None:
                self._save(state, meta, (epoch + 1) * self.data.steps)
                saved = time.monotonic()
            self.told(epoch + 1, loss, seconds)
        return state, meta

    def time_steps(self, most: float):
        """(seconds, steps, state) of an epoch, or of `most` seconds of one.

        The first call, which compiles, is not counted.
        """
        state, _ = self._begin()
        step, calls = self._step(), 0
        first, *rest = self.data.epoch(self.seed, 0)
        state, loss = step(state, first)
        jax.block_until_ready(loss)
        began = time.monotonic()
        for index in rest or [first]:
            state, loss = step(state, index)
            calls += 1
            if calls % AHEAD == 0:  # else the clock would run ahead of the device
                jax.block_until_ready(loss)
                if time.monotonic() - began > most:
                    break
        jax.block_until_ready(state)
        return time.monotonic() - began, calls * self.data.together, state

    def _step(self):
        """The compiled step with what stays the same in this run."""
        run = {
            "seed": np.uint32(self.seed),
            "steps": np.int32(self.data.steps * self.epochs),
        }
        run = parallel.replicate(run)
        teacher = parallel.replicate(self.start) if self.start else None

        def step(state, index):
            return self.trainee.steps(state, index, run, self.data.on_device, teacher)

        return step

    def _begin(self):
        """The state to continue from, and its meta."""
        state = self.trainee.initial(self.seed, self.start)
        meta = {"losses": [], "seconds": []}
        if self.folder is not None:
            checkpoints = Checkpoints(self.folder)
            if checkpoints.latest_step() is not None:
                state, meta, _ = checkpoints.restore(state)
        return parallel.replicate(state), meta

    def _save(self, state, meta, step):
        checkpoints = Checkpoints(self.folder)
        checkpoints.save(step, parallel.unreplicate(state), dict(meta))
        checkpoints.close()


def variables(state) -> dict:
    """The variables of a model in a run's state."""
    return {"params": state.params, "batch_stats": state.batch_stats}


def variables_in(folder: pathlib.Path) -> dict:
    """The variables of a finished run; InputError where its checkpoint is gone."""
    checkpoints = Checkpoints(folder)
    if checkpoints.latest_step() is None:
        raise InputError(
            f"{folder} has no checkpoint, which another run starts from; remove "
            f"{folder}.json, and it is trained again"
        )
    found = checkpoints.restore_variables("latest")
    return {kind: found.get(kind, {}) for kind in ("params", "batch_stats")}
