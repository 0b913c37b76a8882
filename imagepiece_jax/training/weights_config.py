"""The config of trained weights: a run's own, or a file's sizes in the defaults."""

import copy

from imagepiece_jax.common.image_size import described
from imagepiece_jax.common.xla_options import fast_dtype
from imagepiece_jax.errors import InputError
from imagepiece_jax.pretrained import class_names, load, runs
from imagepiece_jax.pretrained.load import IMAGENET, unknown_normalization
from imagepiece_jax.pretrained.load import typed as typed_normalization
from imagepiece_jax.reduction import settings
from imagepiece_jax.training import from_config


def of_weights(
    path,
    config,
    overrides=None,
    normalization=None,
    checkpoint="best",
    averaged=False,
):
    """Return (config, Weights) of the model whose weights are at `path`.

    config: of --config, which must agree with the weights. Where there are `overrides`,
    even none, it is configs/base.py: a run's own fields replace its fields, or those
    that a file's tensors show and this device's fast dtype. Then `overrides` change it:
    a reduction, an image size, but not what the weights decide. normalization: of
    --mean and --std, {} where they are not typed, None of a command that has no such
    flags; checkpoint: of a run; averaged: as load takes it. InputError for the first
    contradiction.
    """
    reads_images = normalization is not None
    normalization = typed_normalization(normalization)
    if overrides is None:
        from_config.check(config)
        from_config.model(config)  # its own mistakes first
        given = runs.model_fields(config.to_dict()) | normalization
        weights = load.read(path, given, checkpoint, averaged)
        weights.under(config.to_dict())
        _take_crop(config, weights)
        asked = runs.model_fields(config.to_dict())
    else:
        given = _typed(config, overrides) | normalization
        weights = load.read(path, given, checkpoint, averaged)
        _complete(config, weights)
        overrides(config)
        from_config.check(config)
        typed = {field.removeprefix("model.") for field, _ in overrides}
        asked = runs.model_fields(config.to_dict())
        asked = {name: value for name, value in asked.items() if name in typed}

    def named(field):
        return f"--{field}" if field in normalization else runs.in_config(field)

    sized = overrides is None or weights.config is not None
    fields = weights.changed(asked | normalization, named, sized=sized)
    known = normalization or asked.get("mean") or weights.says_normalization
    if reads_images and not known:
        print(f"note: {unknown_normalization(path)}", flush=True)
    with config.unlocked():
        for name in IMAGENET:
            config.model[name] = fields[name]
    return config, weights.of_config(config.to_dict())


def _take_crop(config, weights):
    """Fill in the crop of evaluation and how it resizes, where `config` is as usual."""
    data, usual = config.data, runs.LATER["data"]
    own = {f"eval_{k}": v for k, v in weights.crop.items()}
    if data.eval_crop is None:
        with config.unlocked():
            data.update({k: v for k, v in own.items() if data[k] == usual[k]})


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


def for_analysis(path, config, overrides=None, normalization=None, averaged=False):
    """`load.for_analysis` in float32, where `overrides` are typed alone, too."""
    if not overrides:
        config = config if overrides is None else None
        return load.for_analysis(path, config, "float32", normalization, averaged)
    _, weights = of_weights(path, config, overrides, normalization, "latest", averaged)
    return weights.analyzed("float32")


def _typed(config, overrides):
    """The fields of the model that `overrides` of `config` name, with their types."""
    of_model = [pair for pair in overrides if pair[0].startswith("model.")]
    changed = copy.deepcopy(config)
    type(overrides)(of_model)(changed)
    names = (field.removeprefix("model.") for field, _ in of_model)
    return {name: changed.model[name] for name in names}


def _complete(config, weights):
    """Replace fields of `config`, that of configs/base.py, by those of Weights."""
    own = weights.config
    if own is None:
        own = {k: weights.fields[k] for k in ("image_size", "num_classes")}
        if not isinstance(own["image_size"], int):
            raise InputError(
                f"{weights.kind} {weights.path} is for images of "
                f"{described(own['image_size'])}; allowed here are squares, others in "
                "Python: load(), optimize() and Predictor"
            )
        sizes = {k: v for k, v in weights.fields.items() if k not in own}
        prepared = sizes.pop("preprocessing", {})
        own["model"] = sizes | {"dtype": fast_dtype()}
        own["data"] = {f"eval_{k}": v for k, v in prepared.items()}
    try:
        with config.unlocked():
            config.update(_with_tuples(own))
            if weights.config is None and weights.reduction["name"] != "none":
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
