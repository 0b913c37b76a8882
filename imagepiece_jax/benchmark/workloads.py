"""Timed programs of a model: inference, and training steps.

inference: the model alone, on normalized images on the device
train: a full step of `train.py` (augmentation on the device, forward, backward, AdamW,
    averages), with pixels on the device

Inputs are random and rotate. Weights are random in training, or if none are given:
their values do not change the speed.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Array, PyTree

from imagepiece_jax.common import device, parallel, timer
from imagepiece_jax.common.device import NUM_INPUTS
from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.common.rng import root_key
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import optimize
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.cost import TRAINING_MAC_FACTOR, model_macs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.program import ExportedProgram
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.training import train_step
from imagepiece_jax.training.config import ModelConfig, RunConfig
from imagepiece_jax.training.data import check_training
from imagepiece_jax.training.optimizer import create_optimizer
from imagepiece_jax.training.teacher import Teacher

STEPS_PER_EPOCH = 1000  # for the schedules, which cost the same at any step


@dataclasses.dataclass(frozen=True)
class Workload:
    """A program to time."""

    timed_call: timer.TimedCall
    num_images: int  # images per call
    macs: float  # MACs per call
    columns: dict[str, Any]  # further columns of its row, such as gelu and peak_memory


@dataclasses.dataclass(frozen=True, eq=False)
class BenchmarkCase:
    """A model to measure, in one mode, batch size and dtype.

    Mode "train" trains by the recipe of `training_config`.
    Raises InputError for mistakes that would otherwise show while measuring.
    """

    variant: Pretrained | ExportedProgram
    mode: str  # "inference" or "train"
    batch_size: int
    dtype: str
    gelu: str | None = None  # GELU variant, as in `optimize`
    training: RunConfig | None = None  # the recipe in mode train

    def __post_init__(self) -> None:
        variant = self.variant
        optimize.check_gelu(variant.model, self.gelu)
        if not isinstance(variant, Pretrained):
            if self.mode == "train":
                raise InputError("mode is train, which needs weights")
            if variant.batch_size not in (None, self.batch_size):
                problem = f"batch_size is {self.batch_size}, not {variant.batch_size}"
                raise InputError(f"{problem} as in {variant.origin.title}")
        elif self.mode == "train" and self.training is None:
            config = training_config(variant, self.batch_size, self.dtype)
            placement = parallel.process_placement(config.grad_accum_steps)
            check_training(config, placement)
            num_devices = parallel.device_count()
            if num_devices > 1:
                problem = f"mode train takes 1 of {num_devices}"
                raise InputError(f"{problem}: CUDA_VISIBLE_DEVICES=0")
            # The way to set a field of a frozen class.
            object.__setattr__(self, "training", config)

    def compile_workload(self) -> Workload:
        """Compile the program to time."""
        if self.training is not None:
            take_step = compile_training_steps(self.training)
            macs = self.batch_size * TRAINING_MAC_FACTOR * model_macs(take_step.model)
            columns = _describe_program(take_step.model, take_step.compiled_step)
            return Workload(timer.TimedCall(take_step), self.batch_size, macs, columns)
        if isinstance(self.variant, Pretrained):
            fast_program = optimize.optimize(
                self.variant,
                batch_size=self.batch_size,
                dtype=self.dtype,
                gelu=self.gelu,
                attention=self.variant.model.execution.attention,
            )
            timed_call = timer.TimedCall(call_on_noise(fast_program))
            columns = _describe_program(fast_program.model, fast_program.compiled)
        else:
            shape = (self.batch_size, *image_sides(self.variant.config.image_size), 3)
            calls = []
            for seed in range(NUM_INPUTS):
                rng = np.random.default_rng(seed)
                pixels = rng.integers(0, 256, shape, np.uint8)
                calls.append(self.variant.prepared_call(pixels))
            timed_call = timer.TimedCall(lambda number: calls[number % NUM_INPUTS]())
            columns = _describe_program(self.variant.model, None)
        macs = self.batch_size * model_macs(self.variant.model)
        return Workload(timed_call, self.batch_size, macs, columns)


@dataclasses.dataclass
class TrainingSteps:
    """Training steps of a model. A call continues from the step before."""

    model: ViT
    compiled_step: jax.stages.Compiled
    state: train_step.TrainState
    batches: Sequence[PyTree]
    teacher_variables: PyTree

    def __call__(self, call_index: int) -> dict[str, Array]:
        """Take a step on the batch chosen by `call_index`, and return its metrics."""
        batch = self.batches[call_index % NUM_INPUTS]
        arguments = (self.state, batch, self.teacher_variables)
        self.state, metrics = self.compiled_step(*arguments)
        return metrics


def compile_training_steps(config: RunConfig) -> TrainingSteps:
    """Compile a run's training step, and draw weights and batches for it."""
    step_function, make_state, model, teacher_model = make_training_step(config)
    teacher_variables = None
    if teacher_model is not None:
        teacher_variables = parallel.replicate(draw_random_variables(teacher_model))
    state = parallel.replicate(make_state(draw_random_variables(model)))
    batches = []
    num_micro_batches = config.grad_accum_steps
    leading_axes = (num_micro_batches, config.batch_size // num_micro_batches)
    image_shape = train_step.batch_shapes(config, leading_axes)["image"].shape
    for seed in range(NUM_INPUTS):  # batches in the loader's form
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 256, image_shape, np.uint8)
        labels = rng.integers(0, config.num_classes, leading_axes, np.int32)
        batches.append(parallel.shard_samples({"image": pixels, "label": labels}))
    # Argument 0 is the state, whose memory the next state takes over.
    program = parallel.pmap(
        step_function, donate_argnums=(0,), program_name="training step"
    )
    compiled_step = program.compile(state, batches[0], teacher_variables)
    return TrainingSteps(model, compiled_step, state, batches, teacher_variables)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedRun(RunConfig):
    """A run of a loaded model, which no options describe."""

    vit_config: ViTConfig


def training_config(pretrained: Pretrained, batch_size: int, dtype: str) -> RunConfig:
    """DeiT's recipe, the defaults of `RunConfig`, for a model with its reduction."""
    if pretrained.reduction is None:
        raise InputError("mode is train, which needs a reduction with a name")
    return LoadedRun(
        vit_config=pretrained.config,
        image_size=cast(int, pretrained.image_size),  # RunConfig refuses two sides
        num_classes=pretrained.config.num_classes,
        model=ModelConfig(dtype=dtype, attention=pretrained.model.execution.attention),
        reduction=pretrained.reduction,
        batch_size=batch_size,
    )


def with_random_weights(model: ViT) -> Pretrained:
    """Give a model random weights, which do not change its speed."""
    return Pretrained(model, draw_random_variables(model))


def call_on_noise(program: optimize.Program) -> Callable[[int], Array]:
    """Make a function (number) that runs `program` on random images on its device."""
    images = _draw_noise(program.input_spec.shape, program.input_spec.dtype)
    return lambda number: program(images[number % NUM_INPUTS])


@functools.lru_cache(maxsize=4)  # shapes of images
def _draw_noise(shape, dtype):
    """Random images on the device, shared by programs that take turns."""
    keys = jax.random.split(root_key(0), NUM_INPUTS)
    return [jax.random.normal(key, shape, dtype=dtype) for key in keys]


def make_training_step(
    config: RunConfig, adapt_model: Callable[[ViT], ViT] = lambda model: model
) -> tuple[functools.partial, functools.partial, ViT, ViT | None]:
    """Make a run's training step in its last epoch, as `train.py` runs it.

    adapt_model: function from a model to the model to run, for example with cuDNN
    Returns (step, make_state, model, teacher model or None): functions step(state,
        batch, teacher variables) and make_state(model variables).
    """
    model = config.create_train_model(config.epochs - 1)
    lr_schedule, optimizer = create_optimizer(config, STEPS_PER_EPOCH)
    teacher_model = None
    teacher = None
    if config.needs_teacher:  # a teacher of the student's size
        # As in `create_teacher`: distillation reads logits only.
        head_only = not config.reduction.method.needs_teacher
        options = {"drop_path_rate": 0, "head_only": head_only}
        teacher_model = config.create_dense_model().with_execution(**options)
        adapted_teacher = adapt_model(teacher_model)
        teacher = Teacher(adapted_teacher, model.config.mean, model.config.std)
    step_function = functools.partial(
        train_step.train_step,
        config=config,
        model=adapt_model(model),
        optimizer=optimizer,
        lr_schedule=lr_schedule,
        teacher=teacher,
    )
    make_state = functools.partial(
        train_step.init_state, optimizer=optimizer, with_ema=config.ema_decay > 0
    )
    return step_function, make_state, model, teacher_model


def draw_random_variables(model: ViT) -> PyTree:
    """Draw random variables for `model`. Scales and variances are near 1."""
    rng = np.random.default_rng(0)
    # A million numbers are drawn once, and every array takes them from a random offset:
    # drawing all numbers of a large model takes longer than timing it.
    number_pool = rng.normal(0.0, 0.02, 2**20).astype(np.float32)

    def draw_leaf(path, leaf):
        mean = 1.0 if path[-1].key in ("scale", "var") else 0.0
        offset = rng.integers(len(number_pool))
        deviations = np.resize(np.roll(number_pool, offset), leaf.shape)
        return (mean + deviations).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw_leaf, variable_shapes(model))


def _describe_program(model, program):
    """Columns of a row that say how a program runs.

    program: None for an exported file, whose memory is unknown
    """
    return {
        "peak_memory": device.program_bytes(program) if program else None,
        "attention": model.execution.attention_impl,
        "gelu": model.config.arch.gelu,
        "sizes": model.execution.size_encoding,
    }
