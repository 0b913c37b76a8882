"""The experiments of the paper by name: settings in, pages of Markdown out."""

import contextlib
import importlib
import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from experiments import controls
from experiments.context import (
    Context,
    OffTheShelf,
    Settings,
    TrainedRuns,
    package_config,
    runs_in,
)
from experiments.finetune import Finetuner, of_weights
from experiments.images import Images
from imagepiece_jax.benchmark import device
from imagepiece_jax.common import xla_options
from imagepiece_jax.data import class_names
from imagepiece_jax.errors import InputError, one_of
from imagepiece_jax.evaluate.cache import ResultCache
from imagepiece_jax.pretrained.with_config import load_with_config

FINETUNING = "deit_ti_finetune_small.py"  # the config of --small
# By name, "module:function" below experiments; it takes a Context.
EXPERIMENTS = {
    "table1": "tables:table1",
    "table2": "tables:table2",
    "hyperspeed": "hyperspeed:hyperspeed",
    "table3": "tables:table3",
    "masking": "masking:masking",
    "reassess": "analysis:reassess",
    "similarity": "analysis:similarity",
    "overlap": "analysis:overlap",
    "lcb-similarity": "analysis:lcb_similarity",
    "combos": "tables:combinations",
    "ablation": "tables:ablation",
}
ALL = "all"
WITHOUT_TRAINING = ("table3",)  # which have no form with --small


def selected(words: list[str], small: bool) -> list[str]:
    """Names of the experiments to run.

    Raises InputError for anything but one name that there is, and for --small with one
    that has no such form.
    """
    name = one_of("NAME", " ".join(words), (*EXPERIMENTS, ALL))
    trained = [each for each in EXPERIMENTS if each not in WITHOUT_TRAINING]
    if small and name in WITHOUT_TRAINING:
        problem = f"has no form of {name}"
        raise InputError(problem, field="--small", allowed=", ".join(trained))
    if name != ALL:
        return [name]
    return trained if small else [*EXPERIMENTS]


def run(
    names: list[str],
    settings: Settings,
    config: ConfigDict | None = None,
    normalization: dict | None = None,
    overrides: Callable | None = None,
):
    """Run the experiments.

    config: of --config
    normalization: of --mean and --std
    overrides: fields of the weights' config that are typed without --config, as
        `load_with_config` takes them
    """
    if overrides and (settings.runs or settings.small):
        allowed = "without it, --config.FIELD=VALUE of --weights as they are"
        raise InputError("is missing", field="--config", allowed=allowed)
    if normalization and settings.runs:
        raise InputError("has its own --mean and --std", field="--runs")
    models = _models(settings, config, normalization or {}, overrides)
    images = _images(settings, models)
    cache = ResultCache(settings.out, settings.again, device.versions())
    with contextlib.closing(cache), controls.registered():
        context = Context(cache, settings, models, images)
        for name in names:
            cache.experiment = name
            module, _, function = EXPERIMENTS[name].partition(":")
            module = importlib.import_module(f"experiments.{module}")
            try:
                getattr(module, function)(context)
            except InputError as error:
                if len(names) == 1:
                    raise
                print(f"left out: {name}", error, "", sep="\n", flush=True)


def _models(settings, config, normalization, overrides):
    """Trained runs, a Finetuner, or one checkpoint off the shelf."""
    dtype = settings.dtype or xla_options.fast_dtype()
    if settings.runs:
        return TrainedRuns(tuple(runs_in(settings.runs, dtype)))
    own = None if settings.small else config
    _, pretrained = load_with_config(
        settings.weights, own, overrides, normalization, "latest"
    )
    pretrained = pretrained.analyzed(dtype)
    if not settings.small:
        return OffTheShelf(pretrained)
    recipe = config or package_config(FINETUNING)
    recipe.model.dtype = dtype
    recipe.data.resize = settings.resize or recipe.data.resize
    recipe.data.workers = settings.readers
    recipe.data.threads = 2 if settings.readers else 0
    of_weights(recipe, pretrained, typed=config is not None)
    folder = pathlib.Path(settings.out) / "small"
    return Finetuner(recipe, pretrained, settings.data, folder, settings.seeds)


def _images(settings, models):
    """The images that all models are compared on; InputError where they differ."""
    sizes = models.sizes()
    if len(sizes) > 1:
        problem = f"has models of (classes, image size) {sorted(sizes)}"
        allowed = "models of one data set"
        raise InputError(problem, field="--runs", value=settings.runs, allowed=allowed)
    ((classes, side),) = sizes
    if not classes:
        raise InputError(
            "has no classes, so there is no accuracy to compare",
            field="--weights",
            value=settings.weights,
            allowed="weights with a head",
        )
    one = models.pretrained if isinstance(models, OffTheShelf) else None
    names_of_models = _class_names(models)
    known = class_names.labels_by_name(names_of_models, classes)
    crop = one.preprocessing.options if one else {}
    if settings.resize:
        crop["resize"] = settings.resize
    images = Images.open(
        settings.data,
        classes,
        side,
        limit=settings.limit,
        labels_by_name=known,
        batch_size=settings.eval_batch_size,
        workers=settings.readers,
        crop=crop,
    )
    names = images.source.class_names
    data = f"--data {settings.data}"
    for weights in models.weights:
        path = str(weights.source.path)
        class_names.check_classes(weights.names_of_data, path, names, data)
    if line := class_names.mapped_classes(names, settings.data, names_of_models):
        print(f"note: {line}", flush=True)
    return images


def _class_names(models):
    """Names of the classes of all models, by label; None where they have none."""
    if isinstance(models, Finetuner):
        return models.class_names
    return next((weights.class_names for weights in models.weights), None)
