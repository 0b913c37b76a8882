"""The config of trained weights: a run's, or a file's sizes in the defaults."""

import copy
import dataclasses

import numpy as np

from imagepiece_jax.common.image_size import described
from imagepiece_jax.common.xla_options import fast_dtype
from imagepiece_jax.data import class_names
from imagepiece_jax.data.normalize import channels
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.config import Contradiction, ModelConfig, named_fields
from imagepiece_jax.pretrained import load, runs
from imagepiece_jax.reduction import settings
from imagepiece_jax.training.config import RunConfig

OF_TRAINING = ("dtype", "attention", "kernels", "drop_path_rate", "prop_attn")


def of_weights(
    path,
    config=None,
    overrides=None,
    normalization=None,
    checkpoint="best",
    averaged=False,
):
    """The config and the Weights of the model whose weights are at `path`.

    path, checkpoint, averaged: as `load` takes them
    config: of --config, which must agree with the weights; where there are `overrides`,
        even none, it is configs/base.py, whose fields are replaced by a run's, or by
        those that a file's tensors show and this device's fast dtype; None: the weights
        say it all
    overrides: what is typed alone: a reduction, an image size, but nothing that the
        weights decide
    normalization: of --mean and --std, {} where they are not typed, None for a command
        without these flags
    Raises InputError for the first contradiction.
    """
    flags = {
        name: channels(f"--{name}", values, positive=name == "std")
        for name, values in (normalization or {}).items()
    }
    asked = ModelConfig(**flags, labels={name: f"--{name}" for name in flags})
    whole = config is not None and overrides is None
    if whole:
        RunConfig.read(config).create_model()  # its own mistakes first
        stated = runs.model_config(config.to_dict())
        asked = asked.over(stated, named_fields(stated.name))
    elif config is not None:
        asked = asked.over(_typed(config, overrides))
    try:
        weights = load.read(path, asked, checkpoint, averaged)
        if whole and weights.run is not None:
            _check_run(config.to_dict(), weights)
    except Contradiction as error:
        if whole and runs.is_run(path):
            raise InputError(f"{error} or no --config") from error
        raise
    if normalization is not None and not weights.normalized:
        print(f"note: {load.unknown_normalization(path)}", flush=True)
    if config is None:
        return None, weights
    with config.unlocked():
        if not whole:
            _complete(config, weights)
            decided = config.model.to_dict()
            overrides(config)
            for name, value in decided.items():
                if config.model[name] is None and name not in OF_TRAINING:
                    config.model[name] = value  # emptied: as the weights have it
            RunConfig.read(config).create_method()
        elif config.data.eval_crop is None:
            usual = runs.LATER["data"]
            crop = {f"eval_{k}": v for k, v in weights.crop.items()}
            config.data.update(
                {k: v for k, v in crop.items() if config.data[k] == usual[k]}
            )
        config.model.mean, config.model.std = weights.config.mean, weights.config.std
    plain = config.to_dict()
    of_training = {name: plain["model"][name] for name in OF_TRAINING}
    return config, dataclasses.replace(
        weights,
        config=dataclasses.replace(weights.config, **of_training),
        reduction=runs.reduction_of(plain),
        crop=runs.preprocessing_of(plain),
        seed=config.seed,
    )


def for_analysis(
    path,
    config=None,
    overrides=None,
    normalization=None,
    averaged=False,
    dtype="float32",
):
    """The Weights at `path` for what looks into a model.

    Reductions are plain JAX, so that every decision can be seen. A run's last
    checkpoint is taken: the best one was chosen on the images of the figures.

    path, config, overrides, normalization, averaged: as `of_weights` takes them, but
        that configs/base.py without overrides says nothing
    dtype: of the layers
    """
    if not overrides and overrides is not None:
        config = overrides = None
    flags = normalization or {}
    _, weights = of_weights(path, config, overrides, flags, "latest", averaged)
    return weights.analyzed(dtype)


def open_images(run, weights, limit=None):
    """The test images of a RunConfig, for these Weights, and notes on both, to print.

    limit: how many of the first images; None: all
    Raises InputError for weights without classes, and for images of other classes.
    """
    path, data, names = str(weights.path), run.data.name, weights.class_names
    if not run.num_classes:
        raise InputError(
            f"weights {path} have no classes, so there is no accuracy to measure; "
            "train a head first (train.py --config.init.weights), or take their "
            "vectors: python -m imagepiece_jax predict --json"
        )
    by_name = class_names.labels_by_name(names, run.num_classes)
    every = run.source("val", by_name)
    source, shown = every.first(limit), every.class_names
    unnamed = class_names.check_classes(weights.names_of_data, path, shown, data)
    mapped = class_names.mapped_classes(shown, data, names)
    resized = run.eval_transform().note(source.some_sizes(), len(source))
    shifted = _shifted_labels_note(every, data)
    notes = [f"note: {note}" for note in (mapped, shifted, resized) if note]
    return source, [unnamed, *notes] if unnamed and weights.run else notes


def _shifted_labels_note(source, data):
    """A note where the labels of a CSV file may count from 1: accuracy would be 0."""
    labels = getattr(source, "labels", [0])
    if data.startswith("csv:") and np.min(labels) == 1:
        return f"no label of {data} is 0, the lowest is 1; labels count from 0"
    return None


def _check_run(config, weights):
    """Raise Contradiction where a config describes another model than a run's."""

    def decided(model, reduction):
        fields = {"image_size": model.image_size}
        fields |= {f"model.{field}": value for field, value in vars(model.arch).items()}
        for field, value in settings.completed(reduction).items():
            group = "model" if field in settings.MODEL_FIELDS else "reduction"
            fields[f"{group}.{field}"] = value
        return {field: settings.plain(value) for field, value in fields.items()}

    typed = decided(weights.config, runs.reduction_of(config))
    trained = decided(weights.trained.config, weights.trained.reduction)
    for field in {**typed, **trained}:
        value, allowed = typed.get(field), trained.get(field)
        if value != allowed:
            raise Contradiction(
                f"config.{field} is {value!r}, but {weights} has {allowed!r}: allowed "
                f"is {allowed!r}"
            )


def _typed(config, overrides):
    """The fields of the model that `overrides` of `config` name, with their types."""
    top = ("image_size", "num_classes")
    typed = [pair for pair in overrides if pair[0].startswith("model.")]
    typed += [pair for pair in overrides if pair[0] in top]
    changed = copy.deepcopy(config)
    type(overrides)(typed)(changed)
    names = {field.removeprefix("model.") for field, _ in typed}
    fields = runs.model_fields(changed.to_dict())
    return ModelConfig.of({k: v for k, v in fields.items() if k in names})


def _complete(config, weights):
    """Replace fields of `config`, that of configs/base.py, by those of Weights."""
    fields = weights.run
    if fields is None:
        model = weights.trained.config.plain
        size, classes = model.pop("image_size"), model.pop("num_classes")
        if not isinstance(size, int):
            raise InputError(
                f"{weights} is for images of {described(size)}; allowed here are "
                "squares, others in Python: load(), optimize() and Predictor"
            )
        fields = {
            "image_size": size,
            "num_classes": classes,
            "model": {"name": None, **model, "dtype": fast_dtype()},
            "data": {f"eval_{k}": v for k, v in weights.crop.items()},
        }
    try:
        config.update(_with_tuples(fields))
    except TypeError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{weights} does not fit configs/base.py: {reason}") from error
    if weights.run is None and weights.trained.reduction["name"] != "none":
        saved = settings.completed(weights.trained.reduction)
        config.reduction = {k: v for k, v in saved.items() if v is not None}


def _with_tuples(tree):
    if isinstance(tree, dict):
        return {name: _with_tuples(value) for name, value in tree.items()}
    return tuple(tree) if isinstance(tree, list) else tree
