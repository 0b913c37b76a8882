"""The paper's tables and figures: one command each, published beside measured.

python -m experiments table1 --data folder:PATH --weights FILE_OR_RUN
python -m experiments table1 --data ... --runs FOLDER_OF_TRAINED_RUNS
python -m experiments table1 --data ... --weights FILE --small

With --weights alone one checkpoint stands for every row, off the shelf; --runs takes
the runs that were trained with each reduction; --small fine-tunes the weights with each
of them, a few epochs and seeds. OUT gets a page NAME.md, and a line of OUT/points.jsonl
for every result: the same command goes on with those that have none.

NAME: table1, table2, hyperspeed, table3, masking, reassess, similarity, overlap,
lcb-similarity, combos, ablation; or all of them.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments import (
    analysis,
    controls,
    hyperspeed,
    masking,
    merges,
    paper_tables,
    study,
)
from experiments.models import (
    Finetuner,
    Models,
    OffTheShelf,
    TrainedRuns,
    package_config,
    runs_in,
    take_from_weights,
)
from imagepiece_jax import old_cli as cli
from imagepiece_jax.benchmark import device
from imagepiece_jax.benchmark.workloads import Clock
from imagepiece_jax.common import parallel, xla_options
from imagepiece_jax.common.fields import literal
from imagepiece_jax.common.files import check_folder, replace_file
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.config import command_line
from imagepiece_jax.data import class_names
from imagepiece_jax.data.batches import EvalBatches
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError, one_of
from imagepiece_jax.evaluate.cache import MeasuredWeights, ResultCache, Split
from imagepiece_jax.input import loader
from imagepiece_jax.input.registry import open_source, short_name
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.reduction.reduction import Reduction, ReductionLike
from imagepiece_jax.weights.load import load
from imagepiece_jax.weights.location import last_checkpoint

CONFIG = cli.define_config("a config file of --small's runs")
WEIGHTS = cli.weights()
MODEL = cli.model()
IMAGE_SIZE = cli.image_size()
DATA = cli.data()
NORMALIZATION = cli.normalization()
RESIZE = cli.resize()
LIMIT = cli.limit()
DTYPE = cli.dtype("of the layers")
TIMING = cli.timing()
RUNS = cli.text("runs", None, "a folder of trained runs, one a model")
SMALL = cli.switch("small", False, "fine-tune --weights for every model")
SEEDS = cli.listed("seeds", ["0", "1", "2"], "of --small's runs")
FOLDER = "runs/experiments"
OUT = cli.text("out", None, f"default: {FOLDER}")
BATCH = cli.integer("eval_batch_size", 100, "images at once", 1)
READERS = cli.integer("readers", 0, "processes that read images", 0)
SPEED = cli.switch("speed", True, "also measure speeds")
SPEED_BATCH = cli.integer("speed_batch_size", 64, "of speeds in tables", 1)

TABLES = {
    "table1": paper_tables.table1,
    "table2": paper_tables.table2,
    "hyperspeed": hyperspeed.hyperspeed,
    "table3": paper_tables.table3,
    "masking": masking.masking,
    "reassess": analysis.reassess,
    "similarity": analysis.similarity,
    "overlap": analysis.overlap,
    "lcb-similarity": analysis.lcb_similarity,
    "combos": paper_tables.combinations,
    "ablation": paper_tables.ablation,
}
ALL = "all"
WITHOUT_TRAINING = ("table3",)  # which have no form with --small
FINETUNING = "deit_ti_finetune_small.py"  # the config of --small
MOST_SEED = 2**32 - 1
MOST_KEPT = 2**30  # bytes of pixels: smaller sets are read once and kept
LEGEND = (
    "Brackets are 95 % intervals. Published figures are of trained models on "
    "ImageNet's validation set: to be read, not to be compared with."
)


# What is measured


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Images:
    """Images that models are compared on, with the fields of a `cache.Split`."""

    source: Any
    name: str  # as config.data has it
    image_size: int | tuple[int, int]
    most: int  # images at once
    workers: int = 0
    crop: Mapping[str, Any]  # fields of a Preprocessing that are not DeiT's
    alter = None
    valid = None

    def __len__(self):
        return len(self.source)

    @property
    def batch_size(self) -> int:
        """At most all images, rounded up to whole devices."""
        devices = len(parallel.local_devices())
        wanted = min(self.most, max(len(self), 1))
        return -(-wanted // devices) * devices

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(self.image_size, **self.crop)

    @property
    def text(self) -> str:
        """How many images of which set in which crop, for a page."""
        spaced = ", evenly spaced" if self.source.part else ""
        crop = self.preprocessing.text
        return f"{len(self)} images of {short_name(self.name)}{spaced} ({crop})"

    @property
    def setting(self) -> dict[str, Any]:
        """All that decides figures on these images."""
        return {
            "data": self.name,
            "split": "val",
            "images": len(self),
            "digest": self.source.digest,
            "image_size": self.image_size,
            "resize": "deit",
            **self.crop,
            **self.source.part,
        }

    def batches(self):
        """Batches of a pass as `EvalBatches` gives them."""
        pixels = len(self) * math.prod(sides(self.image_size)) * 3
        return self._kept if pixels <= MOST_KEPT else self._read()

    @functools.cached_property
    def _kept(self):
        return list(self._read())

    def _read(self):
        sequence = EvalBatches(
            self.source,
            self.preprocessing,
            batch_size=self.batch_size,
            placement=parallel.placement(),
        )
        return loader.read_ahead(sequence, self.workers, 2 if self.workers else 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """Figures of an evaluation by name, and which images were right, bool [images]."""

    figures: Mapping[str, Any]
    right: np.ndarray

    def __getitem__(self, name):
        return self.figures[name]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Study:
    """Models and images that tables compare, and what is measured of them, each once.

    out: the folder of the pages
    cache: keeps what is measured; None: nothing is
    clock: measures speeds; None: nothing is timed
    """

    models: Models
    images: Images
    out: pathlib.Path
    cache: ResultCache | None = None
    clock: Clock | None = None
    programs: dict = dataclasses.field(default_factory=dict)

    @property
    def pretrained(self) -> Pretrained:
        """The one checkpoint of a table that needs one. Raises InputError without."""
        if not isinstance(self.models, OffTheShelf):
            allowed = "a weights file or a run's folder"
            raise InputError("--weights", allowed=allowed, problem="is missing")
        return self.models.pretrained

    def weights(self, vit: Pretrained, images: Split | None = None) -> MeasuredWeights:
        """Measurements of a model on all images, or on these."""
        return MeasuredWeights(
            vit,
            images or self.images,
            self.cache,
            self.clock,
            seed=0,  # of reducers that draw: one program for all trainings of a row
            programs=self.programs,
        )

    def evaluate(
        self, vit: Pretrained, reduction: ReductionLike, images: Split | None = None
    ) -> Answers:
        """Answers of a model with a reduction on all images, or on these."""
        figures = self.weights(vit, images).evaluate(Reduction.read(reduction))
        return Answers(figures, study.unpacked_right(figures))

    def speed(
        self, vit: Pretrained, reduction: ReductionLike
    ) -> dict[str, float] | None:
        """Speed in turns with the dense model, as a Clock gives it."""
        return (
            self.weights(vit).speed(Reduction.read(reduction)) if self.clock else None
        )

    def inside(
        self,
        kind: str,
        vit: Pretrained,
        reduction: ReductionLike,
        read: Callable[..., Mapping[str, Any]],
        summarize: Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Figures inside of a model with a reduction, as JSON values by name.

        kind: the name of the figures in the setting of their file
        read: from (outputs of the `merges.observed` model, batch) to arrays [m, ...]
        summarize: from these of all images, [images, ...], to the figures
        """

        def measure():
            reduced = vit.with_reduction(reduction, vit.source.seed)
            answer = study.reader(reduced, read, merges.observed(reduced.model))
            return summarize(answer(self.images.batches()))

        weights = self.weights(vit)
        reduction = Reduction.read(reduction)
        what = f"inside {reduction}, {len(self.images)} images"
        return weights.cache.result(weights.setting(kind, reduction), measure, what)

    # The pages

    def facts(self, more: Mapping[str, Any] | None = None) -> str:
        """Table of the images and models of a page; more: further rows, by name."""
        rows = {
            "images": self.images.text,
            "pixels a side": self.images.image_size,
            "models": self.models.note,
        }
        if self.clock:
            rules = self.clock.rules
            rows["speeds"] = (
                f"{device.name()}, batches of {self.clock.batch_size}, in turns with "
                f"the dense model, {rules.repeats} repeats of {rules.seconds:g} s"
            )
        rows |= dict(more or {})
        return f"{LEGEND}\n\n{markdown_table(['', ''], rows.items())}"

    def write_page(self, name: str, title: str, *blocks: str):
        """Write OUT/name.md from blocks of Markdown, and print it."""
        blocks = [block for block in blocks if block]
        text = "\n\n".join([f"## `{name}`: {title}", *blocks]) + "\n"
        replace_file(self.out / f"{name}.md", text)
        print(text, flush=True)


# The command


def selected(words: list[str], small: bool) -> list[str]:
    """Names of the tables to make.

    Raises InputError for anything but one name that there is, and for --small with one
    that has no such form.
    """
    name = one_of("NAME", " ".join(words), (*TABLES, ALL))
    trained = [each for each in TABLES if each not in WITHOUT_TRAINING]
    if small and name in WITHOUT_TRAINING:
        problem = f"has no form of {name}"
        raise InputError("--small", allowed=", ".join(trained), problem=problem)
    if name != ALL:
        return [name]
    return trained if small else list(TABLES)


def read_seeds(texts: list[str]) -> tuple[int, ...]:
    """Seeds, each once. Raises InputError for other texts, and for none."""
    if not texts or not all(map(is_seed, texts)):
        allowed = f"one or more whole numbers from 0 to {MOST_SEED}"
        raise InputError("--seeds", ",".join(texts), allowed)
    return tuple(dict.fromkeys(map(int, texts)))


def is_seed(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) <= MOST_SEED


def opened_models(config, fields, seeds) -> Models:
    """Trained runs, a Finetuner, or one checkpoint off the shelf.

    config: of --config; None: it is not typed
    fields: of a ModelSpec that are typed for --weights
    """
    if config is not None and not SMALL.value:
        raise InputError("--config", problem="is for --small's runs", hint="drop it")
    if fields and RUNS.value:
        field = f"--{[*fields][0]}"
        raise InputError("--runs", problem=f"has its own {field}")
    dtype = DTYPE.value or xla_options.fast_dtype()
    if RUNS.value:
        return TrainedRuns(tuple(runs_in(RUNS.value, dtype)))
    checkpoint = last_checkpoint(WEIGHTS.value)
    try:
        vit = load(WEIGHTS.value, checkpoint=checkpoint, **fields).analyzed(dtype)
    except InputError as error:
        raise error.renamed({"weights": "--weights"}) from error
    if not SMALL.value:
        return OffTheShelf(vit)
    recipe = config or package_config(FINETUNING)
    recipe.model.dtype = dtype
    recipe.data.resize = RESIZE.value or recipe.data.resize
    recipe.data.workers = READERS.value
    recipe.data.threads = 2 if READERS.value else 0
    take_from_weights(recipe, vit, typed=config is not None)
    return Finetuner(recipe, vit, DATA.value, out_folder() / "small", seeds)


def opened_images(models: Models) -> Images:
    """The images that all models are compared on. Prints a note on their classes.

    Raises InputError where models or images have other classes than the first.
    """
    classes, side = one_size(models)
    crop = models.crop
    if RESIZE.value:
        crop["resize"] = RESIZE.value
    name = DATA.value
    names_of_models = models.class_names
    known = class_names.labels_by_name(names_of_models, classes)
    try:
        every = open_source(name, "val", num_classes=classes, labels_by_name=known)
    except InputError as error:
        raise error.renamed({"name": "--data"}) from error
    images = Images(
        source=every.spread(LIMIT.value),
        name=name,
        image_size=side,
        most=BATCH.value,
        workers=READERS.value,
        crop=crop,
    )
    names = images.source.class_names
    for vit in models.weights:
        path = str(vit.source.path)
        class_names.check_classes(vit.names_of_data, path, names, f"--data {name}")
    if line := class_names.mapped_classes(names, name, names_of_models):
        print(f"note: {line}", flush=True)
    return images


def one_size(models: Models) -> tuple[int, Any]:
    """(classes, image size) of all models. Raises InputError where they differ."""
    sizes = models.sizes()
    if len(sizes) > 1:
        problem = f"has models of (classes, image size) {sorted(sizes)}"
        allowed = "models of one data set"
        raise InputError("--runs", RUNS.value, allowed, problem=problem)
    ((classes, side),) = sizes
    if not classes:
        raise InputError(
            "--weights",
            WEIGHTS.value,
            "weights with a head",
            problem="has no classes, so there is no accuracy to compare",
        )
    return classes, side


def out_folder() -> pathlib.Path:
    return pathlib.Path(OUT.value or FOLDER)


def make(names: list[str], paper: Study):
    """Make tables; of several, one with a mistake is left out and named."""
    with controls.registered():
        for name in names:
            try:
                TABLES[name](paper)
            except InputError as error:
                if len(names) == 1:
                    raise
                print(f"left out: {name}", error, "", sep="\n", flush=True)


def main(words):
    rules = TIMING()
    config = None
    if CONFIG.value or command_line.overrides():
        *_, config = cli.configs().values()
    fields = {**MODEL(), **NORMALIZATION()}
    if IMAGE_SIZE.value is not None:
        fields["image_size"] = literal(IMAGE_SIZE.value)
    seeds = read_seeds(SEEDS.value)
    names = selected(words, SMALL.value)
    if RUNS.value and SMALL.value:
        problem = "is given with --small"
        raise InputError("--runs", RUNS.value, "one of them", problem=problem)
    cli.required(DATA)
    if not RUNS.value:
        cli.required(WEIGHTS)
    check_folder("--out", out_folder())
    models = opened_models(config, fields, seeds)
    images = opened_images(models)
    clock = Clock(SPEED_BATCH.value, rules) if SPEED.value else None
    out = out_folder()
    cache = ResultCache(out, versions=study.versions())
    with contextlib.closing(cache):
        paper = Study(models=models, images=images, out=out, cache=cache, clock=clock)
        make(names, paper)


if __name__ == "__main__":
    cli.run(main)
