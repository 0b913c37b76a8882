"""A config merged with trained weights, as commands take both.

`infer.ORDER` has the order: what is typed, the weights, configs/base.py.
"""

import copy
import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from imagepiece_jax.common.fields import as_tuple
from imagepiece_jax.common.image_size import size_text
from imagepiece_jax.common.warning import warn
from imagepiece_jax.common.xla_options import fast_dtype
from imagepiece_jax.data.preprocessing import config_fields, left_open, read_fields
from imagepiece_jax.errors import InputError, flags_of
from imagepiece_jax.input.config import DataConfig
from imagepiece_jax.models.config import (
    Contradiction,
    ModelConfig,
    in_config,
    named_fields,
)
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.pretrained import infer, runs
from imagepiece_jax.pretrained.load import (
    SavedWeights,
    crop_note,
    load_as,
    unknown_normalization,
)
from imagepiece_jax.reduction.reduction import DENSE

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Fields of a config's model that weights do not decide; the others are theirs.
FREE = ("dtype", "attention", "drop_path_rate", "prop_attn")
# Arguments by the flags that say them.
TYPED_AS = {"path": "--weights", "checkpoint": "--checkpoint"}


def load_with_config(
    path: str | os.PathLike,
    config: "ConfigDict | None" = None,
    overrides: Any = None,
    normalization: Mapping[str, Any] | None = None,
    checkpoint: str | None = None,
    averaged: bool = False,
    abstract: bool = False,
) -> tuple["ConfigDict | None", Pretrained]:
    """A config merged with the weights at a path, and the model of that config.

    Typed fields go over those of the weights, and these over configs/base.py, but none
    may contradict what the weights decide. A full config counts as typed.

    path, checkpoint, averaged: as `SavedWeights` takes them
    config: a full one, which is changed, or with `overrides` that of configs/base.py;
        None: the weights say it all
    overrides: the typed fields; None: the config is full
    normalization: the typed --mean and --std; None: the command has no such flags
    abstract: variables are shapes and types, as of `load_as`
    Raises InputError for the first contradiction.
    """
    weights = _weights(path, checkpoint, averaged)
    vit = _load_merged(weights, config, overrides, normalization, abstract)
    if normalization is not None and not vit.source.normalized:
        print(f"note: {unknown_normalization(path)}", flush=True)
    return config, vit


def load_for_configs(
    path: str | os.PathLike, configs: Mapping[str, "ConfigDict"]
) -> dict[str, Pretrained]:
    """The model of each full config, by name, of weights that are read once.

    Raises InputError as `load_with_config`.
    """
    weights = _weights(path)
    loaded = {}
    for name, config in configs.items():
        loaded[name] = _load_merged(weights, config)
    return loaded


def _weights(path, *options):
    """The SavedWeights that --weights names."""
    try:
        return SavedWeights(path, *options)
    except InputError as error:
        raise in_config(error.renamed(TYPED_AS)) from error


def _load_merged(
    weights, config, overrides=None, normalization=None, abstract=False
) -> Pretrained:
    """The model of a config, into which the weights' fields are merged.

    Arguments are those of `load_with_config`.
    """
    source = weights.source
    full = overrides is None and config is not None
    flags = normalization or {}
    try:
        requested = _requested(config, overrides)
    except InputError as error:
        raise in_config(error) from error
    try:
        flagged = ModelConfig(**flags)
    except InputError as error:
        raise error.renamed(flags_of(*flags)) from error
    by_source = {infer.FLAGS: flagged, infer.TYPED: requested}
    requested = infer.merged("in a command", by_source)
    options = {"abstract": abstract, "seed": source.seed}
    sets_crop = False
    try:
        if config is not None:
            if full and source.run is not None:
                _check_run(source, config.to_dict(), requested)
            crop = config_fields(infer.with_crop(source, requested).crop)
            sets_crop = _sets_crop(config, overrides)
            if full:
                with config.unlocked():
                    config.data.update(left_open(config.data, crop))
            else:
                _merge(config, overrides, source, crop, requested.prop_attn)
            fields = config.to_dict()
            free = {name: fields["model"][name] for name in FREE}
            requested = dataclasses.replace(requested, **free)
            options["reduction"] = _reduction(fields, source, requested)
            DataConfig.from_config(fields)  # its mistakes, by their paths
            options["preprocessing"] = read_fields(fields["data"])
            options["seed"] = config.seed
        vit = load_as(weights, requested, **options)
    except InputError as error:
        of_run = full and source.run is not None
        raise _as_typed(error, flags, of_run) from error
    note = crop_note(vit.source, vit.preprocessing, "--config.data.eval_crop")
    if note and not sets_crop:
        warn(note)
    if config is not None:
        _write_model(config, vit)
    return vit


def _as_typed(error, flags, of_run):
    """The same mistake with its field as it is typed: a flag or a path in the config.

    flags: the names of the typed flags
    of_run: whether a full config is compared with that of a run
    """
    typed = in_config(error.renamed(TYPED_AS))
    if isinstance(error, Contradiction):
        typed = typed.renamed({f"config.model.{name}": f"--{name}" for name in flags})
        if of_run:
            typed = typed.with_facts(hint="or leave out --config")
    return typed


def _requested(config, overrides):
    """The fields of the model that are typed; all of a full config."""
    if config is None:
        return infer.NO_FIELDS
    if overrides is not None:
        return _typed(config, overrides)
    requested = runs.model_config(config.to_dict())
    requested.create(config.reduction.to_dict())  # its own mistakes first
    if requested.arch:
        requested = requested.with_all_parts()
    return requested.completed_by(named_fields(requested.name))


def _sets_crop(config, overrides):
    """Whether the crop is typed, or set in a full config."""
    if overrides is None:
        return config.data.eval_crop is not None
    return "data.eval_crop" in dict(overrides)


def _merge(config, overrides, source, crop, prop_attn):
    """Write into the config of configs/base.py the weights' fields, then typed ones.

    What only tensors show is written by `_write_model`.

    crop: the weights' crop, as fields of config.data
    prop_attn: the typed one; None: not typed
    """
    fields = source.run
    if fields is None:
        reduction = (source.reduction or DENSE).fields
        if prop_attn is not None:  # it takes the place of the weights' own
            reduction["prop_attn"] = None
        fields = {
            "model": {"name": None, "dtype": fast_dtype()},
            "reduction": {k: v for k, v in reduction.items() if v is not None},
            "data": crop,
        }
    with config.unlocked():
        try:
            config.update(as_tuple(fields))
        except TypeError as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"does not fit configs/base.py: {reason}",
                place=source,
            ) from error
        overrides.apply(config)


def _write_model(config, vit):
    """Write into a config what the weights decide of its model."""
    fields = vit.config.as_dict
    size = vit.image_size
    if not isinstance(size, int):
        raise InputError(
            f"is for images of {size_text(size)}",
            place=vit.source,
            value=size,
            allowed="squares, others in Python: load(), optimize() and Predictor",
        )
    config.image_size = size
    config.num_classes = vit.model.num_classes
    decided = {}
    for field, value in fields.items():
        if field in config.model and field not in FREE:
            decided[field] = value
    with config.unlocked():
        config.model.update(as_tuple(decided))
        if config.reduction.get("macs") is not None:  # found for these weights
            config.reduction = type(config)(vit.reduction.fields)


def _check_run(source, config, requested):
    """Contradiction where a full config has another model than a run."""
    changed = source.config.with_requested(requested, source.place, True)
    ours = _decided(changed, runs.reduction_of(config))
    trained = _decided(source.config, source.reduction)
    for field in {**ours, **trained}:
        value = ours.get(field)
        allowed = trained.get(field)
        if value != allowed:
            raise Contradiction(
                f"is {value!r}, but {source} has {allowed!r}",
                field=f"config.{field}",
                value=value,
                allowed=repr(allowed),
            )


def _reduction(fields, source, requested):
    """The reduction of a config; with the words of the weights' only where it is it."""
    trained = source.reduction or DENSE
    if requested.prop_attn is not None:
        trained = dataclasses.replace(trained, prop_attn=requested.prop_attn)
    reduction = runs.reduction_of(fields)
    if reduction != trained:
        reduction = dataclasses.replace(reduction, asked="")
    return reduction


def _typed(config, overrides):
    """The typed fields of the model, converted to their types by `config`."""
    typed = overrides.of_model()
    changed = copy.deepcopy(config)
    typed.apply(changed)
    names = {"arch"}  # in configs/base.py it is empty
    for field, _ in typed:
        names.add(field.removeprefix("model."))
    fields = runs.model_fields(changed.to_dict())
    return ModelConfig.from_fields({k: v for k, v in fields.items() if k in names})


def _decided(model, reduction):
    """{field of a config: value} of a ModelConfig and a reduction, to compare."""
    fields = {"image_size": model.image_size}
    arch = vars(model.architecture)
    fields |= {f"model.arch.{part}": value for part, value in arch.items()}
    for field, value in reduction.all_fields.items():
        group = "reduction"
        if field == "prop_attn":
            group = "model"
        fields[f"{group}.{field}"] = value
    return as_tuple(fields)
