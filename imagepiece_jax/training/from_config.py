"""A config's fields: checked, and turned into the objects of a run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from imagepiece_jax.common import field_checks, parallel
from imagepiece_jax.data import decode, loader, sources, transforms
from imagepiece_jax.data.augment import pipeline
from imagepiece_jax.data.augment.policy import Policy, fill_color
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.models.vit import MEAN, ViT
from imagepiece_jax.pretrained import runs
from imagepiece_jax.reduction import methods, settings
from imagepiece_jax.training import optimizer
from imagepiece_jax.training.distillation import Distillation
from imagepiece_jax.training.train_step import Recipe, train_step


def check(config):
    """InputError for the first field of `config` that is missing or out of range."""
    field_checks.check(config)
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
        preprocessing=runs.preprocessing_of(config.to_dict()) or None,
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
    fields = ("seed", "num_classes", "label_smoothing", "mixup", "cutmix")
    fields += ("mixup_prob", "mixup_switch_prob", "ema_decay", "log_every_steps")
    return Recipe(
        augment=augmentation(config),
        distill=distillation(config),
        **{name: config[name] for name in fields},
    )


def distillation(config) -> Distillation | None:
    """The part of the loss that a teacher has; None where it has none."""
    fields = config.distill.to_dict()
    return None if fields["kind"] == "none" else Distillation(**fields)


def has_teacher(config) -> bool:
    """Whether a training step evaluates a teacher, too."""
    return method(config).needs_teacher or distillation(config) is not None


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


def augmentation(config):
    """The part of the augmentation of training images that the device does."""
    return pipeline.Augment(
        crop=_device_crop(config) if config.data.canvas else None,
        policy=_policy(config),
        erase_prob=config.augment.erase_prob,
    )


def _device_crop(config):
    return pipeline.Crop(
        size=config.image_size, area=tuple(config.data.area), flip=config.data.flip
    )


def _policy(config):
    """RandAugment of `config`, or None where it is off."""
    if config.augment.layers == 0:
        return None
    return Policy(
        layers=config.augment.layers,
        prob=config.augment.prob,
        magnitude=config.augment.magnitude,
        magnitude_std=config.augment.magnitude_std,
        fill=fill_color(config.model.get("mean") or MEAN),
    )


def dense(config, **changes) -> ViT:
    """The same model without reduction, with `changes` of its fields."""
    fields = config.model.to_dict() | changes
    return registry.create_model(
        image_size=config.image_size, num_classes=config.num_classes, **fields
    )


def source(config, split, labels_by_name=None):
    """The images of `split`, "train" or "val", that `config.data` names.

    Labels of training images that the loss does not read are not read here either;
    labels_by_name: of folders, as open_source takes them.
    """
    distill = distillation(config)
    return sources.open_source(
        config.data.name,
        split,
        num_classes=config.num_classes,
        data_dir=config.data.dir or None,
        labeled=distill is None or not distill.unlabeled,
        labels_by_name=labels_by_name,
    )


def try_first(source, transform, **options):
    """InputError if the first readable image of `source` does not fit `transform`."""
    for index in range(min(len(source), decode.MAX_IN_A_ROW)):
        try:
            image, _ = source.read(index)
        except decode.UnreadableImage:
            continue
        try:
            transform(image, **options)
        except InputError as error:
            raise InputError(f"{source.name(index)}: {error}") from error
        return


def train_transform(config):
    """What the host does to one training image; a canvas where the device crops."""
    if config.data.canvas:
        return transforms.CanvasTransform(config.data.canvas)
    return transforms.TrainTransform(
        image_size=config.image_size,
        crop=config.data.crop,
        area=tuple(config.data.area),
        shift=config.data.shift,
        flip=config.data.flip,
    )


def eval_transform(config):
    """The fixed crop of evaluation."""
    return transforms.EvalTransform(
        config.image_size,
        resize=config.data.resize,
        crop=config.data.eval_crop,
        crop_mode=config.data.eval_crop_mode,
        interpolation=config.data.eval_interpolation,
    )


def placement(config) -> loader.Placement:
    """Which samples of a batch this process holds; checks that batches divide."""
    place = loader.Placement(
        process_index=parallel.process_index(),
        process_count=parallel.process_count(),
        local_devices=len(parallel.local_devices()),
        accumulation=config.grad_accum_steps,
    )
    place.positions(config.batch_size)
    mixes = (config.mixup > 0 or config.cutmix > 0) and config.mixup_prob > 0
    micro = config.batch_size // config.grad_accum_steps
    if mixes and micro % 2:
        raise InputError(
            f"config.batch_size is {config.batch_size}, {micro} a micro-batch; mixup "
            "and cutmix pair images, so allowed are even numbers"
        )
    return place


def eval_batch_size(config, place, images):
    """config.eval_batch_size, or `images` if fewer, up to a multiple of all devices."""
    devices = place.process_count * place.local_devices
    return -(-min(config.eval_batch_size, images) // devices) * devices


def eval_batches(config, source):
    """A function that makes the batches of one pass over `source` in this process."""
    place = loader.Placement(local_devices=len(parallel.local_devices()))
    return functools.partial(
        loader.eval_batches,
        source,
        eval_transform(config),
        batch_size=eval_batch_size(config, place, len(source)),
        placement=place,
        workers=config.data.workers,
        threads=config.data.threads,
    )


@dataclasses.dataclass(frozen=True)
class Length:
    """Length of a run in steps."""

    steps_per_epoch: int
    epochs: int

    @property
    def steps(self):
        return self.steps_per_epoch * self.epochs


def length(config, images: int) -> Length:
    """Length of a run over `images` training images; a partial batch is left out."""
    return Length(loader.steps_per_epoch(images, config.batch_size), config.epochs)


def schedule(config, steps_per_epoch):
    """Learning rate as a function of the step, for the global batch of `config`."""

    def rate(step):
        return optimizer.learning_rate(
            step,
            lr=optimizer.scaled_lr(config.lr, config.batch_size),
            min_lr=config.min_lr,
            warmup_lr=config.warmup_lr,
            warmup_epochs=config.warmup_epochs,
            epochs=config.epochs,
            steps_per_epoch=steps_per_epoch,
            lr_offset=config.lr_offset,
        )

    jax.eval_shape(rate, jnp.int32(0))  # its checks run now, not in a compile
    return rate


def adamw(config, rate, steps_per_epoch):
    """The optimizer of `config` with the learning-rate function `rate`."""
    b1, b2 = config.betas
    adam = optimizer.adamw(
        rate,
        weight_decay=config.weight_decay,
        b1=b1,
        b2=b2,
        eps=config.eps,
        clip_norm=config.clip_grad_norm,
    )
    param_groups = method(config).param_groups
    if param_groups is None:
        return adam
    groups = optimizer.scale_by_group(
        param_groups,
        rate,
        optimizer.scaled_lr(config.lr, config.batch_size),
        steps_per_epoch,
    )
    return optax.chain(adam, groups)
