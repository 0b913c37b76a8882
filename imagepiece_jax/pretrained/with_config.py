"""A config merged with trained weights, as commands take both.

Typed fields go over those of the weights, and these over configs/base.py.
"""

import copy
import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from imagepiece_jax.common.image_size import described
from imagepiece_jax.common.xla_options import fast_dtype
from imagepiece_jax.data.preprocessing import config_fields, read_fields
from imagepiece_jax.errors import InputError, naming, naming_flags
from imagepiece_jax.models.config import (
    ONE_BY_ONE,
    Contradiction,
    ModelConfig,
    in_config,
    named_fields,
)
from imagepiece_jax.pretrained import runs
from imagepiece_jax.pretrained.load import read, unknown_normalization
from imagepiece_jax.pretrained.weights import NOTHING, Weights
from imagepiece_jax.reduction import settings
from imagepiece_jax.reduction.settings import DENSE, with_defaults

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Fields of a config's model that weights do not decide; the others are theirs.
FREE = ("dtype", "attention", "kernels", "drop_path_rate", "prop_attn")
# Evaluation's crop as in configs/base.py: fields that stay so are those of the weights.
CROP = {
    "eval_crop": None,
    "eval_crop_mode": "center",
    "eval_interpolation": "bicubic",
    "eval_rule": "timm",
}


def read_with_config(
    path: str | os.PathLike,
    config: "ConfigDict | None" = None,
    overrides: Any = None,
    normalization: Mapping[str, Any] | None = None,
    checkpoint: str = "best",
    averaged: bool = False,
) -> tuple["ConfigDict | None", Weights]:
    """A config merged with the weights at a path, and these weights by that config.

    Typed fields go over those of the weights, and these over configs/base.py, but none
    may contradict what the weights decide; a full config counts as typed.

    path, checkpoint, averaged: as `load` takes them
    config: a full one, which is changed, or with `overrides` that of configs/base.py;
        None: the weights say it all
    overrides: the typed fields; None: the config is full
    normalization: the typed --mean and --std; None: the command has no such flags
    Raises InputError for the first contradiction.
    """
    full, requested = overrides is None and config is not None, NOTHING
    with in_config():
        if full:
            requested = runs.model_config(config.to_dict())
            requested.create(config.reduction.to_dict())  # its own mistakes first
            requested = requested.over(named_fields(requested.name))
        elif config is not None:
            requested = _typed(config, overrides)
    flags = normalization or {}
    with naming_flags(*flags):
        typed = ModelConfig(**flags)
    try:
        with in_config(), naming(path="--weights"):
            requested = typed.over(requested)
            weights = read(path, requested, checkpoint, averaged)
            if full and weights.run is not None:
                _check_run(weights, config.to_dict())
    except Contradiction as error:
        name = error.field.removeprefix("config.model.")
        error.field = f"--{name}" if name in flags else error.field
        if full and runs.is_run(path):
            error.hint = "or leave out --config"
        raise
    if normalization is not None and not weights.normalized:
        print(f"note: {unknown_normalization(path)}", flush=True)
    if config is None:
        return None, weights
    with config.unlocked():
        if full and config.data.eval_crop is None:
            theirs = config_fields(weights.crop)
            unset = [k for k, usual in CROP.items() if config.data[k] == usual]
            config.data.update({k: theirs[k] for k in unset if k in theirs})
        elif not full:
            _complete(config, weights)
            overrides(config)
        decided = {k: v for k, v in weights.config.as_dict.items() if k in config.model}
        config.model.update({k: v for k, v in decided.items() if k not in FREE})
    fields = config.to_dict()
    free = {name: fields["model"][name] for name in FREE if name != "prop_attn"}
    changed = dataclasses.replace(
        weights,
        config=dataclasses.replace(weights.config, **free),
        reduction=_reduction(fields, weights),
        crop=read_fields(fields["data"]),
        seed=config.seed,
    )
    if changed.reduction != weights.as_trained.reduction:
        with in_config():  # a typed one that does not fit is no fault of the weights
            changed.config.create(changed.reduction)
    return config, changed


def _reduction(fields, weights):
    """The reduction of a config; typed fields leave that of weights no label."""
    reduction = runs.reduction_of(fields)
    if with_defaults(reduction) != with_defaults(weights.reduction):
        reduction.pop(settings.LABEL, None)
    return reduction


def _typed(config, overrides):
    """The typed fields of the model, converted to their types by `config`."""
    top = ("image_size", "num_classes")
    typed = [(k, v) for k, v in overrides if k.startswith("model.") or k in top]
    changed = copy.deepcopy(config)
    type(overrides)(typed)(changed)
    names = {field.removeprefix("model.") for field, _ in typed}
    fields = runs.model_fields(changed.to_dict())
    arch = {f"arch.{field}": value for field, value in fields["arch"].items()}
    requested = {k: v for k, v in (fields | arch).items() if k in names}
    for name in [name for name in requested if name.startswith("arch.")]:
        field = name.removeprefix("arch.")
        if field not in ONE_BY_ONE:
            problem = "is no field that weights leave open"
            allowed = ", ".join(f"arch.{field}" for field in ONE_BY_ONE)
            path = f"config.model.{name}"
            raise InputError(
                problem, field=path, value=requested[name], allowed=allowed
            )
        requested[field] = requested.pop(name)
    return ModelConfig.of(requested)


def _complete(config, weights):
    """Replace fields of configs/base.py by those of weights."""
    fields = weights.run
    if fields is None:
        model = weights.trained.config.as_dict
        size, classes = model.pop("image_size"), model.pop("num_classes")
        if not isinstance(size, int):
            allowed = "squares, others in Python: load(), optimize() and Predictor"
            problem = f"is for images of {described(size)}"
            raise InputError(problem, place=weights, value=size, allowed=allowed)
        dense = weights.reduction["name"] == DENSE["name"]
        reduction = DENSE if dense else settings.completed(weights.reduction)
        fields = {
            "image_size": size,
            "num_classes": classes,
            "model": {"name": None, **model, "dtype": fast_dtype()},
            "reduction": {k: v for k, v in reduction.items() if v is not None},
            "data": config_fields(weights.crop),
        }
    try:
        config.update(settings.as_tuple(fields))
    except TypeError as error:
        reason = str(error).partition("\n")[0]
        problem = f"does not fit configs/base.py: {reason}"
        raise InputError(problem, place=weights) from error


def _check_run(weights, config):
    """Contradiction where a config has another model than a run."""
    ours = _decided(weights.config, runs.reduction_of(config))
    trained = _decided(weights.trained.config, weights.trained.reduction)
    for field in {**ours, **trained}:
        value, allowed = ours.get(field), trained.get(field)
        if value != allowed:
            problem = f"is {value!r}, but {weights} has {allowed!r}"
            field, allowed = f"config.{field}", repr(allowed)
            raise Contradiction(problem, field=field, value=value, allowed=allowed)


def _decided(model, reduction):
    """{field of a config: value} of a ModelConfig and a reduction, to compare."""
    fields = {"image_size": model.image_size}
    fields |= {f"model.{field}": value for field, value in vars(model.arch).items()}
    for field, value in with_defaults(reduction).items():
        group = "model" if field == "prop_attn" else "reduction"
        fields[f"{group}.{field}"] = value
    return settings.as_tuple(fields)
