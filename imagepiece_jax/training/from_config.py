"""From a config to its models, and to the training step of one."""

import functools

from imagepiece_jax.models import registry
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction import methods, settings
from imagepiece_jax.training.config import RunConfig
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
    fields, _ = settings.split(config.reduction.to_dict())
    return methods.create(**fields)


def step(config, model, optimizer, rate, teacher_model=None):
    """`train_step` as `config` has it: a function of (state, batch, teacher)."""
    loss = method(config).loss
    return functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        rate=rate,
        recipe=Recipe.of(RunConfig.read(config), model),
        loss_terms=loss and functools.partial(loss, plan=model.plan),
        teacher_model=teacher_model,
    )


def dense(config, **changes) -> ViT:
    """The same model without reduction, with `changes` of its fields."""
    fields = config.model.to_dict() | changes
    return registry.create_model(
        image_size=config.image_size, num_classes=config.num_classes, **fields
    )
