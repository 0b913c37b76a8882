"""The config of trained weights: a run's own, or a file's sizes in the defaults."""

import copy
import dataclasses

from imagepiece_jax.common.image_size import described
from imagepiece_jax.common.xla_options import fast_dtype
from imagepiece_jax.data.normalize import channels
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.models.registry import ModelConfig
from imagepiece_jax.pretrained import class_names, load, runs
from imagepiece_jax.reduction import settings
from imagepiece_jax.training import from_config


def of_weights(
    path,
    config=None,
    overrides=None,
    normalization=None,
    checkpoint="best",
    averaged=False,
):
    """Return (config, Weights) of the model whose weights are at `path`.

    Args:
        path: as `load` takes it.
        config: of --config, which must agree with the weights. Where there are
            `overrides`, even none, it is configs/base.py: a run's own fields replace
            its fields, or those that a file's tensors show and this device's fast
            dtype. None: the weights say it all.
        overrides: what is typed alone: a reduction, an image size, but nothing that the
            weights decide.
        normalization: of --mean and --std, {} where they are not typed, None of a
            command that has no such flags.
        checkpoint: of a run.
        averaged: as `load` takes it.

    Raises:
        InputError: for the first contradiction.
    """
    flags = {
        name: channels(f"--{name}", values, positive=name == "std")
        for name, values in (normalization or {}).items()
    }
    asked = ModelConfig(**flags, labels={name: f"--{name}" for name in flags})
    whole = config is not None and overrides is None
    if whole:
        from_config.check(config)
        from_config.model(config)  # its own mistakes first
        said = runs.model_config(config.to_dict())
        asked = asked.over(said, registry.named_fields(said.name))
    elif config is not None:
        asked = asked.over(_typed(config, overrides))
    try:
        weights = load.read(path, asked, checkpoint, averaged)
        if whole and weights.run is not None:
            _check_run(config.to_dict(), weights)
    except registry.Contradiction as error:
        if whole and runs.is_run(path):
            raise InputError(f"{error} or no --config") from error
        raise
    if normalization is not None and not weights.normalized:
        print(f"note: {load.unknown_normalization(path)}", flush=True)
    if config is None:
        return None, weights
    if whole:
        _take_crop(config, weights)
    else:
        _complete(config, weights)
        overrides(config)
        from_config.check(config)
    with config.unlocked():
        config.model.mean, config.model.std = weights.config.mean, weights.config.std
    of_training = {
        name: config.model[name]
        for name in ("dtype", "attention", "kernels", "drop_path_rate", "prop_attn")
    }
    plain = config.to_dict()
    return config, dataclasses.replace(
        weights,
        config=dataclasses.replace(weights.config, **of_training),
        trained_reduction=weights.reduction,
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
    """The Weights at `path` for what looks into a model, with layers of `dtype`.

    Reductions are plain JAX, so that every decision can be seen, and of a run the last
    checkpoint is taken: the best one was chosen on the images that the figures are of.
    Arguments are those of `of_weights`; configs/base.py without overrides says nothing.
    """
    if not overrides and overrides is not None:
        config = overrides = None
    flags = normalization or {}
    _, weights = of_weights(path, config, overrides, flags, "latest", averaged)
    return weights.analyzed(dtype)


def open_images(run, weights, limit=None):
    """(the test images of a RunConfig, for these weights; notes on both, to print).

    limit: the first so many images. InputError for weights without classes, and for
    images of other classes.
    """
    path, data, names = weights.path, run.data.name, weights.class_names
    if not run.num_classes:
        raise InputError(
            f"weights {path} have no classes, so there is no accuracy to measure; "
            "train a head first (train.py --config.init.weights), or take their "
            "vectors: python -m imagepiece_jax predict --json"
        )
    by_name = class_names.labels_by_name(names, run.num_classes)
    source = run.source("val", by_name).first(limit)
    class_names.check_classes(path, source.class_names, data)
    resized = run.eval_transform().note(source.some_sizes(), len(source))
    mapped = class_names.mapped_classes(source.class_names, data, names)
    unnamed = class_names.unnamed_classes(path, source.class_names, data)
    notes = [f"note: {note}" for note in (mapped, resized) if note]
    return source, [unnamed, *notes] if unnamed else notes


def _check_run(config, weights):
    """InputError where a config says another model than that of a run."""
    pairs = [("image_size", weights.config.image_size, weights.trained.image_size)]
    for field in dataclasses.fields(weights.config.arch):
        pairs.append(
            (
                f"model.{field.name}",
                getattr(weights.config.arch, field.name),
                getattr(weights.trained.arch, field.name),
            )
        )
    asked = settings.completed(runs.reduction_of(config))
    own = settings.completed(weights.reduction)
    for field in dict.fromkeys((*asked, *own)):
        group = "model" if field in settings.MODEL_FIELDS else "reduction"
        pairs.append((f"{group}.{field}", asked.get(field), own.get(field)))
    for field, theirs, ours in pairs:
        if settings.plain(theirs) != settings.plain(ours):
            raise registry.Contradiction(
                f"config.{field} is {settings.plain(theirs)!r}, but run {weights.path} "
                f"has {settings.plain(ours)!r}: allowed is {settings.plain(ours)!r}"
            )


def _take_crop(config, weights):
    """Fill in the crop of evaluation and how it resizes, where `config` is as usual."""
    data, usual = config.data, runs.LATER["data"]
    own = {f"eval_{k}": v for k, v in weights.crop.items()}
    if data.eval_crop is None:
        with config.unlocked():
            data.update({k: v for k, v in own.items() if data[k] == usual[k]})


def _typed(config, overrides):
    """The fields of the model that `overrides` of `config` name, with their types."""
    top = ("image_size", "num_classes")
    typed = [
        pair for pair in overrides if pair[0].startswith("model.") or pair[0] in top
    ]
    changed = copy.deepcopy(config)
    type(overrides)(typed)(changed)
    names = {field.removeprefix("model.") for field, _ in typed}
    fields = runs.model_fields(changed.to_dict())
    return ModelConfig.of({k: v for k, v in fields.items() if k in names})


def _complete(config, weights):
    """Replace fields of `config`, that of configs/base.py, by those of Weights."""
    own = weights.run
    if own is None:
        sizes = weights.trained.plain
        own = {k: sizes.pop(k) for k in ("image_size", "num_classes")}
        if not isinstance(own["image_size"], int):
            raise InputError(
                f"{weights.kind} {weights.path} is for images of "
                f"{described(own['image_size'])}; allowed here are squares, others in "
                "Python: load(), optimize() and Predictor"
            )
        own["model"] = {"name": None} | sizes | {"dtype": fast_dtype()}
        own["data"] = {f"eval_{k}": v for k, v in weights.crop.items()}
    try:
        with config.unlocked():
            config.update(_with_tuples(own))
            if weights.run is None and weights.reduction["name"] != "none":
                reduction = settings.completed(weights.reduction)  # a saved model's
                named = {k: v for k, v in reduction.items() if v is not None}
                config.reduction = named
    except TypeError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{weights.kind} {weights.path} does not fit configs/base.py: {reason}"
        ) from error


def _with_tuples(tree):
    if isinstance(tree, dict):
        return {name: _with_tuples(value) for name, value in tree.items()}
    return tuple(tree) if isinstance(tree, list) else tree
