"""What does the config ask for? Its fields as objects, checked before any compile."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from imagepiece_jax.common import parallel
from imagepiece_jax.data import decode, loader, sources, transforms
from imagepiece_jax.data.augment import pipeline
from imagepiece_jax.data.augment.policy import Policy, fill_of
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import pretrained, registry
from imagepiece_jax.models.vit import MEAN
from imagepiece_jax.reduction import methods
from imagepiece_jax.training import checks, optimizer
from imagepiece_jax.training.train_step import Recipe, train_step


def of_weights(path, config, overrides, base, dtype, normalization=None):
    """Return the config of the model whose weights are at `path`.

    config: of --config, which must agree with the weights. Where it is None it is the
    run's own, or for a file `base` with what its tensors say and this dtype, and
    `overrides` change it: a reduction, an image size, but not what the weights decide.
    normalization: of --mean and --std. InputError for the first contradiction.
    """
    normalization = pretrained.typed(normalization)
    if config is not None:
        checks.check(config)
        model(config)  # its own mistakes first
        told = pretrained.read(path, pretrained.heads(config.to_dict()))
        told.under(config.to_dict())
        asked = pretrained.model_fields(config.to_dict())
    else:
        heads = dict(overrides).get("model.num_heads") or ""
        told = pretrained.read(path, int(heads) if heads.isdecimal() else None)
        config = _completed(base, told, dtype)
        overrides(config)
        checks.check(config)
        typed = {field.removeprefix("model.") for field, _ in overrides}
        asked = pretrained.model_fields(config.to_dict())
        asked = {name: value for name, value in asked.items() if name in typed}

    def named(field):
        return f"--{field}" if field in normalization else pretrained.in_config(field)

    fields = told.changed(asked | normalization, named)
    if "mean" not in fields:
        print(f"note: {pretrained.untold(path)}", flush=True)
    with config.unlocked():
        for name, usual in pretrained.IMAGENET.items():
            config.model[name] = fields.get(name, usual)
    return config


def _completed(base, told, dtype):
    """Return the config `base` with the fields of a Pretrained."""
    own = told.config
    if own is None:
        own = {k: told.fields[k] for k in ("image_size", "num_classes")}
        sizes = {k: v for k, v in told.fields.items() if k not in own}
        own["model"] = sizes | {"dtype": dtype}
    try:
        with base.unlocked():
            base.update(_with_tuples(own))
    except TypeError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{told.kind} {told.path} does not fit configs/base.py: {reason}"
        ) from error
    return base


def _with_tuples(tree):
    if isinstance(tree, dict):
        return {name: _with_tuples(value) for name, value in tree.items()}
    return tuple(tree) if isinstance(tree, list) else tree


def model(config, axis_name=None):
    """The ViT that `config` describes; `axis_name` synchronises batch norm."""
    return _create(config, config.reduction.to_dict(), axis_name=axis_name)


def train_model(config, epoch, axis_name=None):
    """The form of `model` that `epoch` trains: masked, or on its way to a rate."""
    fields = config.reduction.to_dict()
    keep_rate = methods.find(**fields).call("rate_at", epoch, **_hook_fields(fields))
    if keep_rate is not None:
        fields["keep_rate"] = keep_rate
    made = _create(config, fields, axis_name=axis_name, masked=True)
    return made.clone(remat=config.remat)


def program_key(model):
    """What makes the program of one keep rate differ from that of another: counts."""
    return tuple(layer.counts for layer in model.plan)


def train_programs(config):
    """How many programs a run's steps compile to: one for every set of counts."""
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


def _hook_fields(fields):
    return {name: value for name, value in fields.items() if name != "name"}


def method(config):
    """The Method that `config.reduction` names."""
    return methods.find(**config.reduction.to_dict())


def loss_terms(config, plan):
    """The method's own loss: (outputs, teacher_outputs) -> terms by name; or None."""
    chosen, fields = method(config), _hook_fields(config.reduction.to_dict())
    if chosen.loss is None:
        return None
    return lambda outputs, taught: chosen.call("loss", outputs, taught, plan, **fields)


def recipe(config):
    """What a step of training does besides the model and the optimiser.

    The loss is not scaled: InputError for float16, which would need it.
    """
    if config.model.dtype == "float16":
        raise InputError(
            "config.model.dtype is 'float16', in which small gradients vanish; allowed "
            "in training are float32, bfloat16"
        )
    fields = ("seed", "num_classes", "label_smoothing", "mixup", "cutmix")
    fields += ("mixup_prob", "mixup_switch_prob", "ema_decay", "log_every_steps")
    return Recipe(
        augment=augmentation(config), **{name: config[name] for name in fields}
    )


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


def batch_shapes(config, dealt):
    """What the loader gives `train_step`, as shapes and types.

    `dealt` are the leading axes: [A, m], or [local devices, A, m].
    """
    side = config.data.canvas or config.image_size
    batch = {
        "image": jax.ShapeDtypeStruct((*dealt, side, side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct(dealt, jnp.int32),
    }
    if config.data.canvas:
        batch["extent"] = jax.ShapeDtypeStruct((*dealt, 2), jnp.int32)
    return batch


def augmentation(config):
    """What of the augmentation of training images the device does."""
    return pipeline.Augment(
        crop=_device_crop(config) if config.data.canvas else None,
        policy=_policy(config, "device"),
        erase_prob=config.augment.erase_prob,
    )


def _device_crop(config):
    return pipeline.Crop(
        size=config.image_size, area=tuple(config.data.area), flip=config.data.flip
    )


def _policy(config, where):
    """RandAugment as `config` has it, or None where it is off or done elsewhere."""
    if config.augment.where != where or config.augment.layers == 0:
        return None
    return Policy(
        layers=config.augment.layers,
        prob=config.augment.prob,
        magnitude=config.augment.magnitude,
        magnitude_std=config.augment.magnitude_std,
        fill=fill_of(config.model.get("mean") or MEAN),
    )


def dense(config, **changes):
    """The same model without reduction: what a reduced one is compared with."""
    fields = config.model.to_dict() | changes
    return registry.create_model(
        image_size=config.image_size, num_classes=config.num_classes, **fields
    )


def source(config, split):
    """The images of `split`, "train" or "val", that `config.data` names."""
    return sources.open_source(
        config.data.name,
        split,
        num_classes=config.num_classes,
        data_dir=config.data.dir or None,
    )


def try_first(source, transform, **options):
    """InputError if the first readable image of `source` does not fit `transform`."""
    for index in range(min(len(source), decode.MOST_IN_A_ROW)):
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
    """What the host does to one image; its canvas where the device crops."""
    if config.data.canvas:
        return transforms.CanvasTransform(config.data.canvas)
    return transforms.TrainTransform(
        image_size=config.image_size,
        crop=config.data.crop,
        area=tuple(config.data.area),
        shift=config.data.shift,
        flip=config.data.flip,
        policy=_policy(config, "host"),
    )


def eval_transform(config):
    """The fixed crop of evaluation."""
    return transforms.EvalTransform(config.image_size, resize=config.data.resize)


def placement(config):
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


def eval_batch_size(config, place):
    """config.eval_batch_size, rounded up to a multiple of all devices."""
    devices = place.process_count * place.local_devices
    return -(-config.eval_batch_size // devices) * devices


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a run is, in steps."""

    steps_per_epoch: int
    epochs: int

    @property
    def steps(self):
        return self.steps_per_epoch * self.epochs


def length(config, images):
    """Length of a run over `images` training images; the last partial batch is left."""
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

    jax.eval_shape(rate, jnp.int32(0))  # its own checks, now and not in a compile
    return rate


def adamw(config, rate, steps_per_epoch):
    """The optimiser of `config` with the learning-rate function `rate`."""
    b1, b2 = config.betas
    adam = optimizer.adamw(
        rate,
        weight_decay=config.weight_decay,
        b1=b1,
        b2=b2,
        eps=config.eps,
        clip_norm=config.clip_grad_norm,
    )
    chosen, fields = method(config), _hook_fields(config.reduction.to_dict())
    if chosen.param_groups is None:
        return adam
    groups = optimizer.scale_by_group(
        lambda path: chosen.call("param_groups", path, **fields),
        rate,
        optimizer.scaled_lr(config.lr, config.batch_size),
        steps_per_epoch,
    )
    return optax.chain(adam, groups)
