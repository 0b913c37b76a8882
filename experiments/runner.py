"""Running experiments by name: settings of the command in, pages of Markdown out."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from experiments import analysis, tables
from experiments.adapt import adapt
from experiments.cache import ResultCache
from experiments.compare import compare
from experiments.context import Context, OffTheShelf, Options, TrainedRuns, runs_in
from experiments.finetune import Finetuner, finetuning_config
from experiments.hyperspeed import hyperspeed
from experiments.images import Images
from experiments.masking import masking
from experiments.schedule import schedule
from experiments.throughput import throughput
from imagepiece_jax.benchmark import device, suite
from imagepiece_jax.common import timer, xla_options
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.errors import InputError, suggestion
from imagepiece_jax.pretrained import class_names
from imagepiece_jax.pretrained.load import for_analysis
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.settings import DENSE

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
    "compare": compare,
    "adapt": adapt,
}
APART = ("compare", "adapt")  # not of the paper, so not among "all"
NO_WEIGHTS = ("throughput", "schedule")  # nor images
ONE_CHECKPOINT = ("table3", "tome-offtheshelf", *NO_WEIGHTS, *APART)  # no --small
FINETUNING = "deit_ti_finetune_small.py"  # the config of --small


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command was given; but for the first four, fields are flags."""

    config: "ConfigDict | None"
    load_config: Callable[[str], "ConfigDict"]  # the package's own, by file name
    normalization: dict
    rules: timer.Rules
    weights: str | None
    runs: str | None
    small: bool
    seeds: list[str]
    data: str | None
    resize: str | None
    subset: int | None
    limit: int | None
    out: str | None
    again: bool
    eval_batch_size: int
    readers: int
    dtype: str | None
    speed: bool
    speed_batch_size: int
    batch_sizes: list[str]
    modes: list[str]
    size: str
    mask_fill: str
    mask_grid: bool
    metric: str
    shares: list[str]
    methods: list[str]
    folds: int


def select(words: list[str], small: bool, timed: bool) -> list[str]:
    """Names of the experiments to run; InputError for anything but one known name."""
    known = (*EXPERIMENTS, "scratch", "all")
    if len(words) != 1 or words[0] not in known:
        found = " ".join(words) or "missing"
        raise InputError(f"NAME is {found}; allowed is one of {', '.join(known)}")
    if words[0] != "all":
        return words
    # With --small only what trains; without speeds nothing that is speeds alone.
    names = [name for name in EXPERIMENTS if name not in APART]
    names = [name for name in names if timed or name != "throughput"]
    return [name for name in names if not small or name not in ONE_CHECKPOINT]


def check(names: list[str], settings: Settings) -> tuple[list[int], Options]:
    """(seeds, options) of the settings; InputError for those that contradict."""
    for name in ("seeds", "batch_sizes", "shares"):
        if not getattr(settings, name):
            raise InputError(f"--{name} is empty; allowed is one or more")
    seeds = list(dict.fromkeys(map(_seed, settings.seeds)))
    options = Options(
        mask_fill=settings.mask_fill,
        mask_grid=settings.mask_grid,
        metric=settings.metric,
        folds=settings.folds,
        size=settings.size,
        batch_sizes=tuple(suite.batch_sizes(settings.batch_sizes)),
        modes=tuple(suite.modes(settings.modes, "modes")),
        dtype=settings.dtype,
        shares=tuple(sorted(set(map(_share, settings.shares)))[::-1]),
        methods=tuple(_methods(settings.methods)),
    )
    if names[0] in APART and settings.metric == "ms" and not settings.speed:
        raise InputError("--metric ms measures speed; allowed is it without --nospeed")
    if settings.methods and names != ["compare"]:
        raise InputError(f"--methods is of compare; allowed is {names[0]} without it")
    if settings.runs and settings.small:
        raise InputError("--runs and --small are both given; allowed is one")
    if settings.small and names[0] in ONE_CHECKPOINT:
        allowed = [name for name in EXPERIMENTS if name not in ONE_CHECKPOINT]
        raise InputError(
            f"--small: {names[0]} has no such form; allowed are {', '.join(allowed)}"
        )
    if settings.normalization and settings.runs:
        raise InputError("--mean and --std are of --weights; runs have their own")
    return seeds, options


def _seed(text):
    if not text.isdecimal() or int(text) >= 2**32:
        raise InputError(
            f"--seeds is {text!r}; allowed are whole numbers from 0 to {2**32 - 1}"
        )
    return int(text)


def _share(text):
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise InputError(
            f"--shares is {text!r}; allowed are shares of the dense model's cost, "
            "between 0 and 1, such as 0.5"
        )
    return value


def _methods(words):
    known = [name for name in METHODS if name != DENSE["name"]]
    for word in words:
        if word not in known:
            hint = suggestion(word, known, f"allowed are {', '.join(known)}")
            raise InputError(f"--methods is {word!r}; {hint}")
    return words


def run(names: list[str], settings: Settings):
    """Run the experiments; of several, also join their pages in results.md."""
    seeds, options = check(names, settings)
    out = pathlib.Path(settings.out or "runs/experiments")
    models = images = None
    if not set(names) <= set(NO_WEIGHTS):
        models = _models(settings, out, seeds, trains=names == ["adapt"])
        images = _images(settings, models)
    cache = ResultCache(out, settings.again, device.versions())
    with contextlib.closing(cache):
        context = Context(
            cache=cache,
            out=out,
            models=models,
            images=images,
            config=settings.config,
            load_config=settings.load_config,
            rules=settings.rules,
            speed_batch=settings.speed_batch_size,
            timed=settings.speed,
            options=options,
        )
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


def _models(settings, out, seeds, trains):
    """Trained runs, a Finetuner, or one checkpoint off the shelf.

    trains: --config says how is trained, not what the weights are.
    """
    dtype = settings.dtype or xla_options.fast_dtype()
    if settings.runs:
        return TrainedRuns(tuple(runs_in(settings.runs, dtype)))
    config = None if settings.small or trains else settings.config
    pretrained = for_analysis(settings.weights, config, dtype, settings.normalization)
    if not settings.small:
        return OffTheShelf(pretrained)
    config = finetuning_config(
        settings.config or settings.load_config(FINETUNING),
        pretrained,
        dtype,
        settings.resize,
        settings.readers,
        given=settings.config is not None,
    )
    return Finetuner(config, pretrained, settings.data, out / "small", seeds)


def _images(settings, models):
    """The images that all models are compared on; InputError where they differ."""
    sizes = models.sizes()
    if len(sizes) > 1:
        raise InputError(
            f"--runs {settings.runs} has models of different classes or image sizes, "
            f"{sorted(sizes)}; allowed are those of one data set"
        )
    ((classes, side),) = sizes
    if not classes:
        raise InputError(
            "--weights has no classes, so there is no accuracy to compare; allowed are "
            "weights with a head"
        )
    alone = isinstance(models, OffTheShelf)
    known = models.pretrained.class_names if alone else None
    by_name = class_names.labels_by_name(known, classes) if alone else None
    images = Images.open(
        settings.data,
        classes,
        side,
        spaced=settings.subset,
        limit=settings.limit,
        labels_by_name=by_name,
        resize=settings.resize or (models.pretrained.resize if alone else "deit"),
        batch_size=settings.eval_batch_size,
        workers=settings.readers,
        crop=models.pretrained.crop if alone else None,
    )
    names, data = images.source.class_names, f"--data {settings.data}"
    for path in models.paths():
        class_names.check_classes(path, names, data)
    if line := class_names.mapped_classes(names, settings.data, known):
        print(f"note: {line}", flush=True)
    return images
