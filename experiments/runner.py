"""Running experiments by name: settings in, pages of Markdown out."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from experiments import analysis, saliency, tables
from experiments.adapt import adapt
from experiments.calibration import calibration
from experiments.carried import carried, carried_maps, level
from experiments.context import (
    Context,
    OffTheShelf,
    TrainedRuns,
    package_config,
    runs_in,
)
from experiments.decisions import decisions
from experiments.finetune import Finetuner, finetuning_config
from experiments.fixed_tokens import fixed_tokens
from experiments.hyperspeed import hyperspeed
from experiments.images import Images
from experiments.int8 import int8
from experiments.masking import masking
from experiments.parts import parts
from experiments.patch_features import patch_features
from experiments.schedule import schedule
from experiments.settings import TableSettings
from experiments.throughput import throughput
from imagepiece_jax.benchmark import device
from imagepiece_jax.common import xla_options
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.data import class_names
from imagepiece_jax.errors import InputError, suggestion
from imagepiece_jax.evaluate.cache import ResultCache
from imagepiece_jax.pretrained.load import opened, read_with_config

if TYPE_CHECKING:
    from ml_collections import ConfigDict

EXPERIMENTS = {
    "table1": tables.table1,
    "table2": tables.table2,
    "hyperspeed": hyperspeed,
    "table3": tables.table3,
    "masking": masking,
    "reassess": analysis.reassess,
    "similarity": analysis.similarity,
    "overlap": analysis.overlap,
    "lcb-similarity": analysis.lcb_similarity,
    "combos": tables.combinations,
    "ablation": tables.ablation,
    "tome-offtheshelf": tables.tome_offtheshelf,
    "evit-table": tables.evit_table,
    "throughput": throughput,
    "schedule": schedule,
    "adapt": adapt,
    "parts": parts,
    "level": level,
    "carried": carried,
    "decisions": decisions,
    "saliency": saliency.saliency,
    "saliency-picture": saliency.picture,
    "patch_features": patch_features,
    "carried-maps": carried_maps,
    "fixed_tokens": fixed_tokens,
    "int8": int8,
    "calibration": calibration,
}
# For any model, so that classes of the images may be any; accuracy where it has them.
NO_CLASSES = ("saliency", "saliency-picture", "patch_features", "carried-maps")
MAYBE_CLASSES = ("fixed_tokens", "int8", "calibration")
APART = (
    "adapt",
    "parts",
    "level",
    "carried",
    "decisions",
    *NO_CLASSES,
    *MAYBE_CLASSES,
)  # not of the paper, so not among "all"
NO_WEIGHTS = ("throughput", "schedule")  # nor images
ONE_CHECKPOINT = ("table3", "tome-offtheshelf", *NO_WEIGHTS, *APART)  # no --small
FINETUNING = "deit_ti_finetune_small.py"  # the config of --small


def select(words: list[str], settings: TableSettings) -> list[str]:
    """Names of the experiments to run.

    InputError for anything but one name that there is, and for settings that it cannot
    have.
    """
    allowed = (*EXPERIMENTS, "scratch", "all")
    if len(words) != 1 or words[0] not in allowed:
        written, hint = " ".join(words), f"allowed: one of {', '.join(allowed)}"
        if len(words) == 1:
            hint = suggestion(written, allowed, hint)
        raise InputError(f"NAME is {written or 'missing'}; {hint}")
    (name,) = words
    if settings.small and name in ONE_CHECKPOINT:
        others = [other for other in EXPERIMENTS if other not in ONE_CHECKPOINT]
        raise InputError(
            f"--small: {name} has no such form; allowed: {', '.join(others)}"
        )
    if name != "all":
        return words
    # With --small only what trains; without speeds nothing that is speeds alone.
    left_out = {*APART, *(ONE_CHECKPOINT if settings.small else ())}
    left_out |= set() if settings.speed else {"throughput"}
    return [name for name in EXPERIMENTS if name not in left_out]


def run(
    names: list[str],
    settings: TableSettings,
    config: "ConfigDict | None" = None,
    normalization: dict | None = None,
    overrides: Callable | None = None,
):
    """Run the experiments; of several, also join their pages in results.md.

    config: of --config; normalization: of --mean and --std; overrides: fields of the
    weights' config that are typed without --config, as `read_with_config` takes them
    """
    apart = settings.small or names == ["adapt"]  # their config says how they train
    if overrides and (settings.runs or apart or set(names) <= set(NO_WEIGHTS)):
        raise InputError(
            "--config is missing: allowed without it is --config.FIELD=VALUE of "
            "--weights that are measured as they are"
        )
    if normalization and settings.runs:
        raise InputError("--mean and --std are of --weights; runs have their own")
    out = pathlib.Path(settings.out)
    models = images = None
    if not set(names) <= set(NO_WEIGHTS):
        weights_config = None if apart else config
        models = _models(
            settings, config, weights_config, normalization or {}, overrides
        )
        images = _images(settings, models, names)
    cache = ResultCache(out, settings.again, device.versions())
    with contextlib.closing(cache):
        context = Context(cache, settings, models, images, config)
        for name in names:
            cache.experiment = name
            _run_one(name, context, alone=len(names) == 1)
    if len(names) > 1:
        pages = [out / f"{name}.md" for name in names]
        text = "\n".join(page.read_text() for page in pages if page.exists())
        replace_file(out / "results.md", text)
        print(f"all pages: {out}/results.md")


def _run_one(name, context, alone):
    """Run one experiment; among several, one that cannot run is left out."""
    try:
        EXPERIMENTS[name](context)
    except InputError as error:
        if alone:
            raise
        print(f"{name} is left out: {error}\n", flush=True)


def _models(settings, config, weights_config, normalization, overrides):
    """Trained runs, a Finetuner, or one checkpoint off the shelf."""
    dtype = settings.dtype or xla_options.fast_dtype()
    if settings.runs:
        return TrainedRuns(tuple(runs_in(settings.runs, dtype)))
    _, pretrained = read_with_config(
        settings.weights, weights_config, overrides, normalization, "latest"
    )
    pretrained = pretrained.analyzed(dtype)
    if not settings.small:
        return OffTheShelf(pretrained)
    recipe = finetuning_config(
        config or package_config(FINETUNING),
        pretrained,
        dtype,
        settings.resize,
        settings.readers,
        typed=config is not None,
    )
    folder = pathlib.Path(settings.out) / "small"
    return Finetuner(recipe, pretrained, settings.data, folder, settings.seeds)


def _images(settings, models, names):
    """The images that all models are compared on; InputError where they differ.

    names: of the experiments; where one of them measures accuracy, classes of the
    images must be the models'
    """
    sizes = models.sizes()
    if len(sizes) > 1:
        raise InputError(
            f"--runs {settings.runs} has models of different classes or image sizes, "
            f"{sorted(sizes)}; allowed: those of one data set"
        )
    ((classes, side),) = sizes
    labeled = not set(names) <= {*NO_CLASSES, *(() if classes else MAYBE_CLASSES)}
    if labeled and not classes:
        raise InputError(
            "--weights has no classes, so there is no accuracy to compare; allowed: "
            "weights with a head"
        )
    alone = isinstance(models, OffTheShelf)
    names_of_weights = models.pretrained.class_names if alone and labeled else None
    by_name = class_names.labels_by_name(names_of_weights, classes) if alone else None
    images = Images.open(
        settings.data,
        classes if labeled else None,
        side,
        limit=settings.limit,
        labels_by_name=by_name,
        resize=settings.resize or (models.pretrained.resize if alone else "deit"),
        batch_size=settings.eval_batch_size,
        workers=settings.readers,
        crop=models.pretrained.crop if alone else None,
    )
    names, data = images.source.class_names, f"--data {settings.data}"
    for path in models.paths() if labeled else ():
        weights_names = opened(path).names_of_data
        class_names.check_classes(weights_names, str(path), names, data)
    if line := class_names.mapped_classes(names, settings.data, names_of_weights):
        print(f"note: {line}", flush=True)
    return images
