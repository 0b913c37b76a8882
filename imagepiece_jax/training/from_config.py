"""A config's fields: checked, and turned into the objects of a run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from imagepiece_jax.common import parallel
from imagepiece_jax.common.layout import Placement
from imagepiece_jax.data import loader
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.models.vit import MEAN, ViT
from imagepiece_jax.reduction import methods, settings
from imagepiece_jax.training import optimizer
from imagepiece_jax.training.config import DistillConfig, OptimConfig, RunConfig
from imagepiece_jax.training.train_step import Recipe, train_step


def check(config):
    """InputError for the first field of `config` that is missing or out of range."""
    RunConfig.read(config)
    method(config)  # its own mistakes


def model(config, axis_name: str | None = None) -> ViT:
    """The ViT that `config` describes; `axis_name` synchronizes batch norm."""
    return _create(config, config.reduction.to_dict(), axis_name=axis_name)


def train_model(config, epoch: int, axis_name: str | None = None) -> ViT:
    """The form of `model` that `epoch` trains: masked, or with that epoch's rate."""
    fields = config.reduction.to_dict()
    if rate_at := method(config).rate_at:
        fields["keep_rate"] = rate_at(epoch)
    made = _create(config, fields, axis_name=axis_name, masked=True)
    return made.clone(remat=config.remat)


def program_key(model):
    """The token counts of a model: one program of a training step for each."""
    return tuple(layer.counts for layer in model.plan)


def train_programs(config):
    """Number of programs that a run's steps compile to: one for every set of counts."""
    models = (train_model(config, epoch) for epoch in range(config.epochs))
    return len({program_key(model) for model in models})


def _create(config, reduction, **options):
    return registry.create_model(
        image_size=config.image_size,
        num_classes=config.num_classes,
        reduction=reduction,
        **options,
        **config.model.to_dict(),
    )


def method(config):
    """The Method that `config.reduction` names."""
    own, _ = settings.split(config.reduction.to_dict())
    return methods.create(**own)


def loss_terms(config, plan):
    """The method's own loss: (outputs, teacher_outputs) -> terms by name; or None."""
    loss = method(config).loss
    return loss and functools.partial(loss, plan=plan)


def recipe(config) -> Recipe:
    """What a training step does besides the model and the optimizer.

    The loss is not scaled: InputError for float16, which would need it, and for a model
    without classes, which has no loss.
    """
    if not config.num_classes:
        raise InputError("config.num_classes is 0; allowed in training are 1 or more")
    if config.model.dtype == "float16":
        raise InputError(
            "config.model.dtype is 'float16', in which small gradients vanish; allowed "
            "in training are float32, bfloat16"
        )
    run = RunConfig.read(config)
    mean = config.model.get("mean") or MEAN
    return Recipe(
        seed=run.seed,
        num_classes=run.num_classes,
        label_smoothing=run.label_smoothing,
        mixup=run.mixup,
        cutmix=run.cutmix,
        mixup_prob=run.mixup_prob,
        mixup_switch_prob=run.mixup_switch_prob,
        ema_decay=run.ema_decay,
        log_every_steps=run.log_every_steps,
        augment=run.augment.create(run.data, run.image_size, mean),
        distill=run.distill if run.distill.active else None,
    )


def has_teacher(config) -> bool:
    """Whether a training step evaluates a teacher, too."""
    return method(config).needs_teacher or DistillConfig.read(config).active


def step(config, model, optimizer, rate, teacher_model=None):
    """`train_step` as `config` has it: a function of (state, batch, teacher)."""
    return functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        rate=rate,
        recipe=recipe(config),
        loss_terms=loss_terms(config, model.plan),
        teacher_model=teacher_model,
    )


def batch_shapes(config, leading):
    """A batch of the loader for `train_step`, as shapes and types.

    leading: sizes of the first axes, [A, m] or [local devices, A, m].
    """
    side = config.data.canvas or config.image_size
    batch = {
        "image": jax.ShapeDtypeStruct((*leading, side, side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct(leading, jnp.int32),
    }
    if config.data.canvas:
        batch["extent"] = jax.ShapeDtypeStruct((*leading, 2), jnp.int32)
    return batch


def dense(config, **changes) -> ViT:
    """The same model without reduction, with `changes` of its fields."""
    fields = config.model.to_dict() | changes
    return registry.create_model(
        image_size=config.image_size, num_classes=config.num_classes, **fields
    )


def source(config, split, labels_by_name=None):
    """The images of `split`, "train" or "val", that `config.data` names."""
    return RunConfig.read(config).source(split, labels_by_name)


def train_transform(config):
    """What the host does to one training image; a canvas where the device crops."""
    return RunConfig.read(config).train_transform()


def eval_transform(config):
    """The fixed crop of evaluation."""
    return RunConfig.read(config).eval_transform()


def placement(config) -> Placement:
    """Which samples of a batch this process holds; checks that batches divide."""
    place = parallel.placement(config.grad_accum_steps)
    RunConfig.read(config).check_batches(place)
    return place


def eval_batch_size(config, place, images):
    """config.eval_batch_size, or `images` if fewer, up to a multiple of all devices."""
    return RunConfig.read(config).rounded_eval_batch(place, images)


@dataclasses.dataclass(frozen=True)
class Length:
    """Length of a run in steps, and which of them an evaluation follows."""

    steps_per_epoch: int
    epochs: int
    eval_every_epochs: int = 1

    @property
    def steps(self):
        return self.steps_per_epoch * self.epochs

    def is_evaluated(self, step: int) -> bool:
        """Whether `step` ends an epoch that is evaluated, or the run."""
        epoch, rest = divmod(step, self.steps_per_epoch)
        return step == self.steps or (rest == 0 and epoch % self.eval_every_epochs == 0)


def length(config, images: int) -> Length:
    """Length of a run over `images` training images; a partial batch is left out."""
    steps = loader.steps_per_epoch(images, config.batch_size)
    return Length(steps, config.epochs, config.eval_every_epochs)


def rate_and_optimizer(config, steps_per_epoch):
    """The learning rate as a function of the step, and the optimizer of `config`."""
    groups = method(config).param_groups
    return optimizer.create(OptimConfig.read(config), steps_per_epoch, groups)
