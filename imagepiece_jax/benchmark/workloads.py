"""Timed programs of a config: inference from three starting points, and training.

inference: normalized images on the device; nothing but the model runs.
copy: decoded images (uint8) on the host; the program copies and normalizes them.
end_to_end: image files; the project's loader reads, decodes and crops them.
train: a full step as `train.py` runs it (augmentation on the device, forward,
backward, AdamW, averages), pixels on the device.

Weights are random where none are given, and in training: they do not change the speed.
Inputs are random, too, and rotate.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator

import jax
import numpy as np

from imagepiece_jax.benchmark import device
from imagepiece_jax.benchmark.device import INPUTS
from imagepiece_jax.common import parallel, timer
from imagepiece_jax.common.rng import normal, root_key
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.source import Source
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import optimize
from imagepiece_jax.input import loader
from imagepiece_jax.input.registry import open_source
from imagepiece_jax.models.cost import TRAINING_MACS, dead_macs, model_macs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.reduction.reduction import DENSE, ReductionLike
from imagepiece_jax.training.data import check_training
from imagepiece_jax.training.optimizer import create
from imagepiece_jax.training.train_step import batch_shapes, init_state, train_step

MODES = ("inference", "copy", "end_to_end", "train")
STEPS_PER_EPOCH = 1000  # for the schedules, which cost the same at any step


@dataclasses.dataclass(frozen=True)
class Workload:
    """A program to time."""

    job: timer.TimedCall
    images: int  # images in one call
    macs: float  # MACs of one call
    facts: dict  # further fields of its row in the report
    skipped: float = 0.0  # those of its MACs that it need not compute


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """Test images that programs read from files, and how."""

    name: str  # of the data, as `open_source` takes it
    data_dir: str | None = None
    num_classes: int | None = None  # None: any
    preprocessing: Preprocessing
    batch_size: int
    seed: int = 0
    workers: int = 8
    threads: int = 2

    def source(self) -> Source:
        """The images. Raises InputError if they are missing, too few, or too small."""
        source = open_source(
            self.name,
            "val",
            num_classes=self.num_classes,
            data_dir=self.data_dir,
        )
        length = len(source)
        if length < self.batch_size:
            allowed = f"1 to {length}, the number of test images"
            raise InputError("batch_size", self.batch_size, allowed)
        source.try_first(self.preprocessing)
        return source

    def batches(self) -> Iterator[np.ndarray]:
        """Yield endless batches: uint8 [batch size, S, S, 3]."""
        sequence = loader.TrainBatches(
            self.source(),
            self.preprocessing,
            batch_size=self.batch_size,
            seed=self.seed,
            start_step=0,
            stop_step=10**9,
        )
        batches = loader.read_ahead(sequence, self.workers, self.threads)
        with contextlib.closing(batches) as read:
            for batch in read:
                yield batch["image"][0, 0]  # one device, one micro-batch


class Case:
    """A model to measure, in one mode, batch size and dtype.

    config: a config, of which a copy gets the batch size and dtype; None: of weights
    mode: one of MODES
    vit: a Pretrained; None: the config's model, with random weights
    forms: gelu, sizes and reductions of the optimized program, as for `optimize`
    data: images of mode end_to_end, as `open_source` takes them, for weights
    """

    def __init__(
        self, config, mode, batch_size, dtype, vit=None, forms=None, data=None
    ):
        self.config = None
        self.run = None
        if config is None:
            self.model = vit.model
            self.image_size = vit.image_size
            self.attention = vit.attention
        else:
            self.config = config.copy_and_resolve_references()
            self.config.batch_size = batch_size
            self.config.model.dtype = dtype
            self.run = RunConfig.from_config(self.config)
            self.model = self.run.create_model()
            self.image_size = self.config.image_size
            self.attention = self.config.model.attention
        self.mode = mode
        self.batch_size = batch_size
        self.dtype = dtype
        self.vit = vit
        self.forms = forms or {}
        self.data = data
        self.path = None if vit is None else str(vit.source.path)

    def check(self):
        """Raise InputError for mistakes that would otherwise show while measuring."""
        mode = self.mode
        optimize.check_gelu(self.model, self.forms.get("gelu"))
        if mode == "train":
            if self.run is None:
                allowed = (
                    "inference, copy, end_to_end with weights; train with a config"
                )
                raise InputError("mode", mode, allowed)
            check_training(self.run, parallel.placement(self.run.grad_accum_steps))
            count = parallel.device_count()
            if count > 1:
                allowed = "one device, such as by CUDA_VISIBLE_DEVICES=0"
                problem = f"is train on {count} devices"
                raise InputError("mode", mode, allowed, problem=problem)
        if mode == "end_to_end":
            self.reading.source()

    @property
    def reading(self) -> Reading:
        """The images of mode end_to_end."""
        if self.run is None:
            if not self.data:
                raise InputError("data", problem="is missing", hint="name test images")
            return Reading(
                name=self.data,
                preprocessing=self.vit.preprocessing,
                batch_size=self.batch_size,
            )
        data = self.run.data
        return Reading(
            name=data.name,
            data_dir=data.dir or None,
            num_classes=self.run.num_classes,
            preprocessing=self.run.preprocessing(),
            batch_size=self.batch_size,
            seed=self.run.seed,
            workers=data.workers,
            threads=data.threads,
        )

    def workload(self, streams: "InputStreams | None" = None) -> Workload:
        """The compiled program; `streams` has the images of mode end_to_end."""
        if self.mode == "train":
            return self._train()
        fast = self._compiled(pixels=self.mode != "inference")
        if self.mode == "inference":
            call = on_noise(fast)
        elif self.mode == "copy":
            call = on_pixels(fast)
        else:
            batches = streams.batches(self.reading)

            def call(number):
                return fast(next(batches))

        facts = _facts(fast.model, fast.compile_seconds, fast.compiled)
        macs = self.batch_size * model_macs(self.model, self.image_size)
        skipped = self.batch_size * dead_macs(self.model)
        job = timer.TimedCall(call)
        return Workload(job, self.batch_size, macs, facts, skipped)

    def _compiled(self, pixels):
        """The optimized program for normalized images or for uint8 pixels."""
        vit = self.vit
        if vit is None:
            variables = random_variables(self.model, self.image_size)
            prepared = Preprocessing(self.image_size)
            name = self.config.model.name  # DiffRate's schedules depend on it
            vit = Pretrained(self.model, variables, prepared, name=name)
        return optimize.optimize(
            vit,
            batch_size=self.batch_size,
            dtype=self.dtype,
            **self.forms,
            attention=self.attention,
            pixels=pixels,
        )

    def _train(self):
        """The Workload of training steps, each of which continues from the last."""
        config = self.config
        step, first_state, model, teacher = training_step(config)
        if teacher is not None:
            teacher = random_variables(teacher, config.image_size)
        state = first_state(random_variables(model, config.image_size))
        state = parallel.replicate(state)
        teacher = parallel.replicate(teacher)
        batches = []
        for seed in range(INPUTS):
            batches.append(parallel.shard(_labeled_batch(config, seed)))
        step = parallel.pmap(step, donate_argnums=(0,), program="training step")
        began = time.perf_counter()
        compiled = step.compile(state, batches[0], teacher)
        seconds = time.perf_counter() - began

        def call(number):
            nonlocal state
            state, metrics = compiled(state, batches[number % INPUTS], teacher)
            return metrics

        images = self.batch_size
        macs = images * TRAINING_MACS * model_macs(model, config.image_size)
        skipped = 0.0
        if self.run.reduction.method.loss is None:  # one of a method reads all tokens
            skipped = images * TRAINING_MACS * dead_macs(model)
        facts = _facts(model, seconds, compiled)
        return Workload(timer.TimedCall(call), images, macs, facts, skipped)


def on_noise(program):
    """A function call(number) that runs `program` on random images on its device."""
    images = _noise(program.images.shape, program.images.dtype)
    return lambda number: program(images[number % INPUTS])


@functools.lru_cache(maxsize=4)  # of as many sizes of images
def _noise(shape, dtype):
    """Random images on the device, which programs that take turns share."""

    @jax.jit
    def draw():
        keys = jax.random.split(root_key(0), INPUTS)
        return [normal(each, shape, dtype=dtype) for each in keys]

    return draw()


def on_pixels(program):
    """A function call(number) that runs `program` on random pixels of the host."""
    rng = np.random.default_rng(0)
    images = [_pixels(rng, program.images.shape) for _ in range(INPUTS)]
    return lambda number: program(images[number % INPUTS])


@dataclasses.dataclass(frozen=True)
class Clock:
    """Measures the speed of a model with a reduction, in turns with the dense model."""

    batch_size: int = 64
    rules: timer.Rules = timer.Rules()

    def setting(self, vit: Pretrained) -> dict:
        """All that decides a speed besides the model, as JSON values.

        "gelu" is among them where the program's is not the model's, and "sizes" where
        programs may have them in a direction of the keys.
        """
        setting = {"device": device.name(), "batch_size": self.batch_size}
        setting |= dataclasses.asdict(self.rules)
        here = jax.local_devices()[0]
        gelu = optimize.default_gelu(vit.model, here)
        if gelu != vit.model.arch.gelu:
            setting["gelu"] = gelu
        if optimize.for_device(vit.model, here).backend == "cudnn":
            setting["sizes"] = "direction"
        return setting

    def __call__(self, vit: Pretrained, reduction: ReductionLike) -> dict[str, float]:
        """`timer.figures` relative to the dense model, whose time is "dense_ms"."""
        jobs = {}
        for name, each in (("dense", DENSE), ("reduced", reduction)):
            variant = vit.with_reduction(each, seed=0)
            fast = optimize.optimize(
                variant,
                batch_size=self.batch_size,
                dtype=vit.model.dtype.name,
            )
            jobs[name] = timer.TimedCall(on_noise(fast))
        times = timer.measure(jobs, self.rules)
        figures = timer.figures(times["dense"], times["reduced"], self.batch_size)
        return figures | {"dense_ms": 1e3 * timer.spread(times["dense"]).median}


def training_step(config, adapt=lambda model: model):
    """The training step of a config's last epoch, as `train.py` runs it.

    adapt: function of a model that returns the one to run, such as with cuDNN
    Returns (the step, a function of a state, a batch and the teacher's variables; a
        function from the model's variables to the first state; the model; the
        teacher's model, or None).
    """
    run = RunConfig.from_config(config)
    method = run.reduction.method
    model = run.create_train_model(run.optim.epochs - 1, parallel.AXIS)
    rate, optimizer = create(run.optim, STEPS_PER_EPOCH, method.param_groups)
    teacher = None
    adapted_teacher = None
    if method.needs_teacher or run.distill.active:  # a teacher of the student's size
        teacher = run.create_dense(drop_path_rate=0.0)
        teacher = teacher.clone(head_only=not method.needs_teacher)
        adapted_teacher = adapt(teacher)
    step = functools.partial(
        train_step,
        run=run,
        model=adapt(model),
        optimizer=optimizer,
        rate=rate,
        teacher_model=adapted_teacher,
    )
    first_state = functools.partial(
        init_state,
        optimizer=optimizer,
        with_ema=config.ema_decay > 0,
    )
    return step, first_state, model, teacher


def random_variables(model, image_size):
    """Random variables of `model`; scales and variances are near 1.

    A million numbers are drawn, and taken again from another place for each array: to
    draw those of a large model takes longer than to time it.
    """
    rng = np.random.default_rng(0)
    numbers = rng.normal(0.0, 0.02, 2**20).astype(np.float32)

    def draw(path, leaf):
        around = 1.0 if path[-1].key in ("scale", "var") else 0.0
        first = rng.integers(len(numbers))
        drawn = np.resize(np.roll(numbers, first), leaf.shape)
        return (around + drawn).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, variable_shapes(model, image_size))


def _facts(model, seconds, compiled):
    """What the report says of a compiled program besides its speed.

    seconds: how long it took to compile
    """
    if jax.config.jax_compilation_cache_dir:  # it may have come from there
        seconds = None
    return {
        "compile_s": seconds,
        "peak_memory": device.program_bytes(compiled),
        "attention": model.backend,
        "gelu": model.arch.gelu,
        "sizes": model.sizes,
        "stem": model.stem,
    }


def _pixels(rng, shape):
    return rng.integers(0, 256, shape, np.uint8)


def _labeled_batch(config, seed):
    """A batch as the loader yields it: uint8 [A, m, S, S, 3], labels [A, m]."""
    rng = np.random.default_rng(seed)
    split = (config.grad_accum_steps, config.batch_size // config.grad_accum_steps)
    shapes = batch_shapes(RunConfig.from_config(config), split)
    return {
        "image": _pixels(rng, shapes["image"].shape),
        "label": rng.integers(0, config.num_classes, split, np.int32),
    }


class InputStreams(contextlib.ExitStack):
    """Endless batches of validation images, read by the project's own loader.

    Programs that use the same images share one loader. With a loader for each, a
    program would start its turn with batches that were read during another's turn.
    """

    def __init__(self):
        super().__init__()
        self._streams = {}

    def batches(self, reading: Reading) -> Iterator[np.ndarray]:
        """Iterator over batches of images: uint8 [batch size, S, S, 3]."""
        if reading not in self._streams:
            batches = contextlib.closing(reading.batches())
            self._streams[reading] = self.enter_context(batches)
        return self._streams[reading]
